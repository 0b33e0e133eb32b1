/// Rows of one or several arrays in memory, windows of a stream included, as a blend gathers them.
#pragma once

#include <span>
#include <vector>

#include "mtf/gather/array_view.hpp"
#include "mtf/gather/row_source.hpp"
#include "mtf/sampling/pass_order.hpp"

namespace mtf {

/// Row i of the source is row i of each array. The memory behind the views belongs to the caller and outlives the
/// source.
class ArrayRows : public RowSource {
 public:
  /// `fields` describes the arrays one by one. With `shuffle` every pass has an order of its own.
  /// Throws: ConfigError if there is no array or no row, the numbers of rows differ, or a field doesn't describe its
  /// array.
  ArrayRows(std::vector<ArrayView> arrays, std::vector<RowField> fields, bool shuffle);

  [[nodiscard]] std::uint64_t num_rows() const noexcept override { return order_.num_rows(); }
  [[nodiscard]] std::span<const RowField> fields() const noexcept override { return fields_; }
  void find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                 std::span<std::uint64_t> rows) const override;
  [[nodiscard]] std::uint64_t place_of(Key key, std::uint64_t pass, std::uint64_t row) const override {
    return order_.place_of(key, pass, row);
  }
  void write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                  std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const override;
  [[nodiscard]] std::span<const ArrayView> arrays() const noexcept override { return arrays_; }

 private:
  const std::vector<ArrayView> arrays_;
  const std::vector<RowField> fields_;
  const PassOrder order_;
};

}  // namespace mtf
