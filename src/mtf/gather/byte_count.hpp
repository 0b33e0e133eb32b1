/// Sums of bytes that stop at a largest value instead of beginning again at 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace mtf {

/// Stands for more bytes than can be counted, which no pool gives.
inline constexpr std::size_t kUncountableBytes = std::numeric_limits<std::size_t>::max();

/// Bytes of `num_rows` rows, at most kUncountableBytes.
constexpr std::size_t bytes_of_rows(std::uint64_t num_rows, std::size_t row_bytes) noexcept {
  return row_bytes != 0 && num_rows > kUncountableBytes / row_bytes ? kUncountableBytes : num_rows * row_bytes;
}

/// `sum + bytes`, at most kUncountableBytes.
constexpr std::size_t add_bytes(std::size_t sum, std::size_t bytes) noexcept {
  return bytes > kUncountableBytes - sum ? kUncountableBytes : sum + bytes;
}

}  // namespace mtf
