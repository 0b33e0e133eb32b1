/// Copies chosen rows of an array into one dense block: out[k] = array[rows[k]], for k in [0, rows.size()).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "mtf/gather/array_view.hpp"

namespace mtf {

/// `out` has room for `rows.size() * view.row_bytes` bytes and overlaps nothing that is read.
/// Complexity: O(bytes copied); rows are requested from memory ahead of their copy, so random rows cost bandwidth, not
/// latency. Thread safety: reads the array without a lock; what is written to it meanwhile may be seen.
/// Throws: ConfigError if a row isn't in [0, num_rows), before anything is copied.
void gather(const ArrayView& view, std::span<const std::int64_t> rows, std::byte* out);

/// Writes row `rows[k]` to slot `slots[k]` of `out`, for k in [0, rows.size()): slot s begins at s * row_bytes.
/// Requires rows in [0, num_rows) and as many slots as rows. Complexity and thread safety: as above.
void gather_into(const ArrayView& view, std::span<const std::uint64_t> rows, std::span<const std::uint32_t> slots,
                 std::byte* out);

/// Where an array's dense rows lie: row i begins at data + i * stride_bytes.
struct RowBase {
  const std::byte* data = nullptr;
  std::ptrdiff_t stride_bytes = 0;
};

/// out[k] = row `rows[k]` of array `arrays[k]`, all arrays having dense rows of `row_bytes` bytes.
/// Requires arrays[k] in [0, bases.size()) and rows within their arrays. Complexity and thread safety: as `gather`.
void gather_mixed(std::span<const RowBase> bases, std::size_t row_bytes, std::span<const std::int32_t> arrays,
                  std::span<const std::uint64_t> rows, std::byte* out);

/// As `gather` for the rows [begin, begin + count).
void gather_range(const ArrayView& view, std::uint64_t begin, std::uint64_t count, std::byte* out);

}  // namespace mtf
