/// Which lengths share a row: first-fit decreasing on counts of lengths instead of on single pieces.
///
/// The longest length left begins a row, which is filled with the longest that still fit; the row so found, a pattern,
/// is used as often as its lengths last. So the table has as many entries as there are patterns, however many pieces
/// there are, and about as many rows as best-fit decreasing on the single pieces needs (D. S. Johnson, "Near-optimal
/// bin packing algorithms", 1973).
///
/// Pieces of one length are numbered 0, 1, 2 ... and go to the rows in that order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mtf {

/// Thread safety: const methods.
class PackingTable {
 public:
  /// Pieces of one length in the rows of a pattern: `each` of them in every row, from piece `first` on.
  struct Entry {
    std::uint32_t length = 0;
    std::uint32_t each = 0;
    std::uint64_t first = 0;
  };

  /// A row: which pattern it has, and the how manieth of that pattern it is.
  struct Row {
    std::span<const Entry> entries;  ///< the longest first
    std::uint64_t nth = 0;
  };

  PackingTable() = default;

  /// `counts[l]` pieces of length l; the length of a row is counts.size() - 1, at least 1. `counts[0]` isn't read.
  /// Complexity: O(patterns * (lengths / 64 + pieces of a row)).
  explicit PackingTable(std::span<const std::uint64_t> counts);

  [[nodiscard]] std::uint64_t num_rows() const noexcept { return row_begins_.back(); }
  [[nodiscard]] std::size_t num_patterns() const noexcept { return row_begins_.size() - 1; }
  [[nodiscard]] std::size_t num_bytes() const noexcept;

  /// Requires row < num_rows(). Complexity: O(log patterns).
  [[nodiscard]] Row row(std::uint64_t row) const noexcept;

  /// The row that holds piece `piece` of length `length`. Requires that there is such a piece.
  /// Complexity: O(log patterns).
  [[nodiscard]] std::uint64_t row_of(std::uint32_t length, std::uint64_t piece) const noexcept;

 private:
  /// Where the entries of one length are, in the order of their `first`.
  struct Use {
    std::uint32_t pattern = 0;
    std::uint32_t entry = 0;
  };

  void index_lengths(std::size_t num_lengths);

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> entry_begins_{0};  // pattern q has the entries [entry_begins_[q], entry_begins_[q + 1])
  std::vector<std::uint64_t> row_begins_{0};    // and the rows [row_begins_[q], row_begins_[q + 1])
  std::vector<Use> uses_;
  std::vector<std::uint32_t> use_begins_;  // length l has the uses [use_begins_[l], use_begins_[l + 1])
};

}  // namespace mtf
