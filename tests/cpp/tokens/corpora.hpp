/// Small corpora in files of their own, for the tests of tokens.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "mtf/gather/row_source.hpp"
#include "mtf/tokens/corpus.hpp"

namespace mtf::testing {

/// A folder that goes with the object.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "mtf-tokens-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      throw std::runtime_error("no temporary folder");
    }
    path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }

  /// Writes tokens as T after `header` bytes of something else, and says where they are.
  template <typename T>
  TokenPart write(const std::string& name, const std::vector<std::int64_t>& tokens, std::size_t header = 0) const {
    std::vector<char> bytes(header, 'h');
    for (const std::int64_t token : tokens) {
      const auto value = static_cast<T>(token);
      const char* const raw = reinterpret_cast<const char*>(&value);
      bytes.insert(bytes.end(), raw, raw + sizeof(T));
    }
    const std::string path = (path_ / name).string();
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return {.path = path, .first_byte = header, .memory = nullptr, .num_tokens = tokens.size()};
  }

 private:
  std::filesystem::path path_;
};

/// The stream 0, 1, 2 ... of `num_tokens`, cut to files of `sizes` tokens.
inline std::shared_ptr<const TokenCorpus> counting_corpus(const Folder& folder, const std::vector<std::size_t>& sizes,
                                                          std::size_t max_open = 2) {
  std::vector<TokenPart> parts;
  std::int64_t next = 0;
  for (const std::size_t size : sizes) {
    std::vector<std::int64_t> tokens(size);
    for (std::int64_t& token : tokens) {
      token = next++;
    }
    parts.push_back(folder.write<std::uint32_t>(std::to_string(parts.size()), tokens, parts.size() * 3));
  }
  return std::make_shared<const TokenCorpus>(std::move(parts), TokenType::uint32, max_open);
}

/// The rows at some places, field by field.
struct Rows {
  std::vector<std::vector<std::int64_t>> input_ids, labels;
  std::vector<std::vector<std::int32_t>> position_ids;
  std::vector<std::vector<bool>> loss_mask;
};

/// Writes rows into slots in reverse order, so that slots and places differ.
template <typename Source>
Rows read_rows(const Source& source, Key key, std::uint64_t pass, const std::vector<std::uint64_t>& places,
               std::size_t length) {
  const std::size_t num = places.size();
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> buffers;
  for (const RowField& field : source.fields()) {
    memory.emplace_back(num * field.row_bytes(), std::byte{0x55});
    buffers.push_back(memory.back().data());
  }
  std::vector<std::uint32_t> slots(num);
  for (std::size_t k = 0; k < num; ++k) {
    slots[k] = static_cast<std::uint32_t>(num - 1 - k);
  }
  source.write(key, pass, places, slots, buffers);
  Rows rows;
  const auto take = [&]<typename T>(std::size_t field, std::size_t slot, std::vector<std::vector<T>>& out) {
    const std::byte* const first = memory[field].data() + slot * length * sizeof(T);
    std::vector<T> values(length);
    if constexpr (std::is_same_v<T, bool>) {
      for (std::size_t i = 0; i < length; ++i) {
        values[i] = first[i] != std::byte{0};
      }
    } else {
      std::memcpy(values.data(), first, length * sizeof(T));
    }
    out.push_back(std::move(values));
  };
  for (std::size_t k = 0; k < num; ++k) {
    take(0, slots[k], rows.input_ids);
    take(1, slots[k], rows.labels);
    if (memory.size() == 4) {
      take(2, slots[k], rows.position_ids);
      take(3, slots[k], rows.loss_mask);
    }
  }
  return rows;
}

}  // namespace mtf::testing
