/// Where the documents of a corpus begin and end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "mtf/tokens/corpus.hpp"

namespace mtf {

/// Document d has the tokens [begin(d), end(d)) of the corpus; documents lie one after the other and fill it.
/// Thread safety: all methods. The offsets belong to the caller and outlive the index.
class DocumentIndex {
 public:
  /// `offsets`: one more than documents, from 0 to the corpus's number of tokens, not falling.
  /// Throws: ConfigError if they aren't that, or there are 2^32 documents or more.
  DocumentIndex(std::span<const std::int64_t> offsets, std::uint64_t num_tokens);

  [[nodiscard]] std::uint64_t num_documents() const noexcept { return offsets_.size() - 1; }
  [[nodiscard]] std::span<const std::int64_t> offsets() const noexcept { return offsets_; }
  [[nodiscard]] std::uint64_t begin(std::uint64_t document) const noexcept {
    return static_cast<std::uint64_t>(offsets_[document]);
  }
  [[nodiscard]] std::uint64_t end(std::uint64_t document) const noexcept { return begin(document + 1); }
  [[nodiscard]] std::uint64_t length(std::uint64_t document) const noexcept { return end(document) - begin(document); }

  /// The first document that begins after `token`. Complexity: O(1) where documents are equally dense, else O(log) of
  /// those in a bucket of the corpus.
  [[nodiscard]] std::uint64_t first_after(std::uint64_t token) const noexcept;

  /// The document that holds a token. Requires token < the number of tokens.
  [[nodiscard]] std::uint64_t document_of(std::uint64_t token) const noexcept { return first_after(token) - 1; }

  /// Documents that aren't empty.
  [[nodiscard]] std::uint64_t num_nonempty() const noexcept { return num_nonempty_; }

 private:
  std::span<const std::int64_t> offsets_;
  std::uint64_t num_nonempty_ = 0;
  // The corpus in buckets of 2^shift tokens, and the first document that begins in each or later.
  std::uint32_t shift_ = 0;
  std::vector<std::uint32_t> buckets_;
};

/// The offsets of documents that end with `end_token`; the last of a part ends with the part, too. Reads every token.
/// Throws: FileError if a file can't be mapped.
[[nodiscard]] std::vector<std::int64_t> scan_documents(const TokenCorpus& corpus, std::int64_t end_token);

}  // namespace mtf
