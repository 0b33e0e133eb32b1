/// The rows of an array in memory: row i lies at `data + i * row_stride`, for i in [0, num_rows).
///
/// Any element type and shape; strides may be anything, zero and negative included. A row whose bytes lie together is
/// one run; otherwise it is a grid of runs, one axis per dimension that couldn't be merged with the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mtf {

/// One dimension of a row that isn't dense: `size` entries, `stride_bytes` apart.
struct Axis {
  std::uint64_t size = 0;
  std::ptrdiff_t stride_bytes = 0;

  friend bool operator==(const Axis&, const Axis&) = default;
};

/// Doesn't own the memory: the caller keeps the array alive. Thread safety: a value.
struct ArrayView {
  const std::byte* data = nullptr;
  std::uint64_t num_rows = 0;
  std::ptrdiff_t row_stride_bytes = 0;
  std::size_t row_bytes = 0;  ///< bytes of one row in a dense copy
  std::size_t run_bytes = 0;  ///< bytes that lie together; `row_bytes` if the row is dense
  std::vector<Axis> axes;     ///< the dimensions around a run, outermost first; empty if the row is dense

  [[nodiscard]] const std::byte* row(std::uint64_t i) const noexcept {
    return data + static_cast<std::ptrdiff_t>(i) * row_stride_bytes;
  }
};

/// The rows of an array with dimensions `shape` and `strides_bytes`; the first dimension counts the rows.
/// Throws: ConfigError for an array without dimensions, or strides that don't match the shape.
[[nodiscard]] ArrayView view_of(const std::byte* data, std::span<const std::uint64_t> shape,
                                std::span<const std::ptrdiff_t> strides_bytes, std::size_t item_bytes);

/// How many windows of `length` rows, `stride` apart, fit into `num_rows` rows. Throws: ConfigError if one of them is
/// 0.
[[nodiscard]] std::uint64_t count_windows(std::uint64_t num_rows, std::uint64_t length, std::uint64_t stride);

/// The windows [i * stride, i * stride + length) of an array, seen as rows; no memory is copied. The array's dimensions
/// are given as for `view_of`. Throws: ConfigError as `view_of` and `count_windows` do.
[[nodiscard]] ArrayView windows_of(const std::byte* data, std::span<const std::uint64_t> shape,
                                   std::span<const std::ptrdiff_t> strides_bytes, std::size_t item_bytes,
                                   std::uint64_t length, std::uint64_t stride);

}  // namespace mtf
