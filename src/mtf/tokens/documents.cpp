#include "mtf/tokens/documents.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "mtf/error.hpp"
#include "mtf/tokens/token_copy.hpp"

namespace mtf {

namespace {

constexpr std::uint64_t kDocumentsPerBucket = 4;

}  // namespace

DocumentIndex::DocumentIndex(std::span<const std::int64_t> offsets, std::uint64_t num_tokens) : offsets_(offsets) {
  if (offsets.empty() || offsets.front() != 0) {
    throw ConfigError("documents: the first offset must be 0" +
                      (offsets.empty() ? ", but there is none" : ", but is " + std::to_string(offsets.front())));
  }
  if (offsets.size() > std::uint64_t{1} << 32) {
    throw ConfigError("documents: must be fewer than 2^32 in one corpus, but are " +
                      std::to_string(offsets.size() - 1) + "; make several corpora and blend them");
  }
  for (std::size_t d = 1; d < offsets.size(); ++d) {
    if (offsets[d] < offsets[d - 1]) {
      throw ConfigError("documents: offsets must not fall, but offset " + std::to_string(d) + " is " +
                        std::to_string(offsets[d]) + " after " + std::to_string(offsets[d - 1]));
    }
    num_nonempty_ += offsets[d] > offsets[d - 1] ? 1 : 0;
  }
  if (static_cast<std::uint64_t>(offsets.back()) != num_tokens) {
    throw ConfigError("documents: the last offset must be the number of tokens, " + std::to_string(num_tokens) +
                      ", but is " + std::to_string(offsets.back()));
  }
  const std::uint64_t num_buckets = std::max<std::uint64_t>(1, num_documents() / kDocumentsPerBucket);
  const std::uint64_t tokens_each = std::max<std::uint64_t>(1, num_tokens / num_buckets);
  shift_ = static_cast<std::uint32_t>(std::bit_width(tokens_each));
  buckets_.resize((num_tokens >> shift_) + 2);
  std::size_t document = 0;
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    const std::uint64_t first_token = bucket << shift_;
    while (document < num_documents() && begin(document) < first_token) {
      ++document;
    }
    buckets_[bucket] = static_cast<std::uint32_t>(document);
  }
}

std::uint64_t DocumentIndex::first_after(std::uint64_t token) const noexcept {
  const std::size_t bucket = static_cast<std::size_t>(token >> shift_);
  const auto first = offsets_.begin() + buckets_[bucket];
  const auto last = offsets_.begin() + buckets_[bucket + 1];
  return static_cast<std::uint64_t>(std::upper_bound(first, last, static_cast<std::int64_t>(token)) - offsets_.begin());
}

std::vector<std::int64_t> scan_documents(const TokenCorpus& corpus, std::int64_t end_token) {
  constexpr std::uint64_t kChunk = std::uint64_t{1} << 16;
  std::vector<std::int64_t> offsets{0};
  std::vector<std::uint64_t> found;
  TokenReader reader(corpus);
  for (std::uint64_t begin = 0; begin < corpus.num_tokens();) {
    const TokenRun run = reader.run(begin, kChunk);
    found.clear();
    find_token(corpus.type(), run.tokens, run.count, end_token, begin + 1, found);
    for (const std::uint64_t offset : found) {
      offsets.push_back(static_cast<std::int64_t>(offset));
    }
    begin += run.count;
    if (run.ends_part && offsets.back() != static_cast<std::int64_t>(begin)) {
      offsets.push_back(static_cast<std::int64_t>(begin));
    }
  }
  return offsets;
}

}  // namespace mtf
