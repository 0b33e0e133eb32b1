#include "mtf/tokens/corpus.hpp"

#include <unordered_map>
#include <utility>

namespace mtf {

namespace {

/// The files of the parts, each once and as long as its parts need, and the file of each part.
struct Files {
  std::vector<MapCache::File> files;
  std::vector<std::size_t> of_part;

  Files(std::span<const TokenPart> parts, TokenType type) {
    std::unordered_map<std::string, std::size_t> numbers;
    for (const TokenPart& part : parts) {
      if (part.path.empty()) {
        of_part.push_back(0);
        continue;
      }
      const auto [found, is_new] = numbers.try_emplace(part.path, files.size());
      if (is_new) {
        files.push_back({.path = part.path, .num_bytes = 0});
      }
      MapCache::File& file = files[found->second];
      file.num_bytes = std::max(file.num_bytes, part.first_byte + part.num_tokens * item_bytes(type));
      of_part.push_back(found->second);
    }
  }
};

}  // namespace

TokenCorpus::TokenCorpus(std::vector<TokenPart> parts, TokenType type, std::size_t max_open_files)
    : type_(type),
      parts_([&] {
        std::erase_if(parts, [](const TokenPart& part) { return part.num_tokens == 0; });
        return std::move(parts);
      }()),
      maps_(
          [&] {
            Files files(parts_, type);
            file_of_part_ = std::move(files.of_part);
            return std::move(files.files);
          }(),
          max_open_files) {
  begins_.reserve(parts_.size() + 1);
  begins_.push_back(0);
  for (const TokenPart& part : parts_) {
    begins_.push_back(begins_.back() + part.num_tokens);
  }
}

TokenRun TokenReader::run(std::uint64_t begin, std::uint64_t max_count) {
  const std::vector<std::uint64_t>& begins = corpus_.begins_;
  if (!part_ || begin < begins[*part_] || begin >= begins[*part_ + 1]) {
    const std::size_t part = part_ && begin == begins[*part_ + 1] ? *part_ + 1 : corpus_.part_of(begin);
    map_ = corpus_.parts_[part].path.empty() ? nullptr : corpus_.maps_.map(corpus_.file_of_part_[part]);
    part_ = part;
  }
  const TokenPart& part = corpus_.parts_[*part_];
  const std::byte* const first = map_ ? map_->data() + part.first_byte : part.memory;
  const std::uint64_t left = begins[*part_ + 1] - begin;
  return {.tokens = first + (begin - begins[*part_]) * item_bytes(corpus_.type_),
          .count = std::min(left, max_count),
          .ends_part = left <= max_count,
          .map = map_};
}

}  // namespace mtf
