/// Rows that can be written anywhere in a batch: what a blend gathers from.
///
/// A pass takes every row once, in an order that depends on the key and the pass only. Place j of that order is what a
/// blend asks for: its draw d of a source of n rows is place d mod n of pass d / n. Finding rows and writing them are
/// two steps, because rows are found in longer runs than a batch has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mtf/gather/array_view.hpp"
#include "mtf/random/key.hpp"

namespace mtf {

/// One array of a batch, as far as a single row of it says.
struct RowField {
  std::string name;                  ///< where the field stands in a batch, e.g. "input_ids"; unique in a source
  std::string dtype;                 ///< numpy's name ("int64", "bool", "float32"), or "bfloat16"
  std::size_t item_bytes = 0;        ///< bytes of one item
  std::vector<std::uint64_t> shape;  ///< of one row; empty for a scalar
  /// The field counts positions (int32 or int64) from 0 in each document: the code that makes the batch adds
  /// `cu_seqlens` (int32), the places of its zeros in the batch laid flat and, at the end, the number of its items.
  bool counts_positions = false;

  /// Bytes of one row, which lie together in a batch.
  [[nodiscard]] std::size_t row_bytes() const noexcept {
    std::size_t bytes = item_bytes;
    for (const std::uint64_t size : shape) {
      bytes *= size;
    }
    return bytes;
  }

  friend bool operator==(const RowField&, const RowField&) = default;
};

/// Thread safety: every method may be called by several threads at once, without the GIL.
class RowSource {
 public:
  RowSource() = default;
  RowSource(const RowSource&) = delete;
  RowSource& operator=(const RowSource&) = delete;
  virtual ~RowSource() = default;

  /// Rows of one pass, the same for every pass and at least 1.
  [[nodiscard]] virtual std::uint64_t num_rows() const noexcept = 0;

  /// The same fields and shapes for every row, at least one field.
  [[nodiscard]] virtual std::span<const RowField> fields() const noexcept = 0;

  /// The numbers, in [0, num_rows()), of the rows at `places` of pass `pass`; reads no data. `key` is the source's:
  /// what belongs to a pass alone is keyed by fold_in(key, pass). `places` lie in [0, num_rows()), mostly in runs of
  /// successive ones; `rows` is equally long.
  virtual void find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                         std::span<std::uint64_t> rows) const = 0;

  /// The place of a pass at which row `row` is given: the inverse of `find_rows`. Throws: std::out_of_range if there is
  /// no such row. Complexity: O(1), up to 2 us.
  [[nodiscard]] virtual std::uint64_t place_of(Key key, std::uint64_t pass, std::uint64_t row) const = 0;

  /// Writes row `rows[i]` of pass `pass`, as `find_rows` gives it, to slot `slots[i]` of every field's buffer, for all
  /// i. `buffers` has one entry per field; slot s of field f begins at s * fields()[f].row_bytes(). Every byte of a
  /// slot is written. Threads may write to other slots of the same buffers meanwhile. Complexity: O(bytes written), in
  /// the first row of a pass as well.
  virtual void write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                          std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const = 0;

  /// The same for the rows at `places` of the pass.
  void write(Key key, std::uint64_t pass, std::span<const std::uint64_t> places, std::span<const std::uint32_t> slots,
             std::span<std::byte* const> buffers) const {
    std::vector<std::uint64_t> rows(places.size());
    find_rows(key, pass, places, rows);
    write_rows(key, pass, rows, slots, buffers);
  }

  /// The arrays whose rows these are, as they stand and in every pass, one per field; none where rows are made.
  [[nodiscard]] virtual std::span<const ArrayView> arrays() const noexcept { return {}; }
};

}  // namespace mtf
