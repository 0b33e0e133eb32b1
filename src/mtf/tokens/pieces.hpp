/// Documents cut to pieces that fit into a row, sorted by length: what packing puts together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "mtf/tokens/documents.hpp"
#include "mtf/tokens/token_rows.hpp"

namespace mtf {

/// What becomes of a document that is longer than a row.
enum class LongDocuments : std::uint8_t {
  split,     ///< cut into pieces of a row's length and a rest
  truncate,  ///< its first row's length is kept
  drop,      ///< left out
};

/// Every document that isn't empty is one piece; a longer one than a row is what LongDocuments says. Pieces of a length
/// are numbered by their document, after those the full pieces that a split document has before its last.
/// Thread safety: const methods. Memory: 4 bytes a document, 12 more for each that is split.
class Pieces {
 public:
  /// Throws: ConfigError for a length that is 0 or above 2^31 - 1.
  Pieces(std::shared_ptr<const DocumentIndex> documents, std::uint64_t length, LongDocuments long_documents);

  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  /// How many pieces there are of each length, [0, length].
  [[nodiscard]] std::span<const std::uint64_t> counts() const noexcept { return counts_; }
  [[nodiscard]] const DocumentIndex& documents() const noexcept { return *documents_; }

  /// Where the number of the document of piece `piece` of a length is kept, to request it ahead of `piece`; null for a
  /// full piece of a split document.
  [[nodiscard]] const std::uint32_t* document_at(std::uint64_t length, std::uint64_t piece) const noexcept {
    const std::uint64_t at = first_[length] + piece;
    return at < first_[length + 1] ? by_length_.data() + at : nullptr;
  }

  /// A piece: its tokens, and whether it is the end of its document.
  struct Piece {
    TokenSpan span;
    std::uint32_t document = 0;
    bool ends_document = false;
  };

  /// Complexity: O(1), O(log of the split documents) for a full piece of one.
  [[nodiscard]] Piece piece(std::uint64_t length, std::uint64_t number) const noexcept;

  /// A piece's length and number.
  struct Number {
    std::uint64_t length = 0;
    std::uint64_t piece = 0;
  };

  /// The pieces of a document in its order; none if it is empty or left out. Requires that there is such a document.
  /// Complexity: O(log documents + pieces).
  [[nodiscard]] std::vector<Number> of_document(std::uint64_t document) const;

  [[nodiscard]] std::uint64_t num_tokens() const noexcept { return num_tokens_; }
  /// Tokens that have a label: all but the last of each document.
  [[nodiscard]] std::uint64_t num_supervised() const noexcept { return num_supervised_; }
  [[nodiscard]] std::uint64_t num_documents() const noexcept { return by_length_.size(); }
  [[nodiscard]] std::uint64_t num_long() const noexcept { return num_long_; }
  [[nodiscard]] std::uint64_t num_dropped_documents() const noexcept { return num_dropped_documents_; }
  [[nodiscard]] std::uint64_t num_dropped_tokens() const noexcept { return num_dropped_tokens_; }

 private:
  /// The length of a document's only or last piece; 0 if it has none.
  [[nodiscard]] std::uint64_t last_length(std::uint64_t tokens) const noexcept;

  const std::shared_ptr<const DocumentIndex> documents_;
  const std::uint64_t length_;
  const LongDocuments long_documents_;
  std::vector<std::uint64_t> counts_;
  std::vector<std::uint64_t> first_;        // only or last pieces of length l: by_length_[first_[l], first_[l + 1])
  std::vector<std::uint32_t> by_length_;    // documents by the length of that piece, then by number
  std::vector<std::uint32_t> split_;        // documents that are split
  std::vector<std::uint64_t> full_before_;  // full pieces of the split documents before each
  std::uint64_t num_tokens_ = 0;
  std::uint64_t num_supervised_ = 0;
  std::uint64_t num_long_ = 0;
  std::uint64_t num_dropped_documents_ = 0;
  std::uint64_t num_dropped_tokens_ = 0;
};

}  // namespace mtf
