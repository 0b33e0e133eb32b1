#include "mtf/gather/cu_seqlens.hpp"

#include <algorithm>
#include <optional>

namespace mtf {

namespace {

constexpr std::size_t kBlock = 64;

/// Goes backwards from document to document: an item says how far before it its document begins. Nothing where an item
/// doesn't lead to a zero, because then the positions don't count. Complexity: O(documents).
template <typename Position>
std::optional<std::size_t> jump(std::span<const Position> positions, std::int32_t* out) noexcept {
  std::size_t num = 0;
  for (std::size_t left = positions.size(); left > 0;) {
    const Position before = positions[left - 1];
    if (before < 0 || static_cast<std::size_t>(before) >= left ||
        positions[left - 1 - static_cast<std::size_t>(before)] != 0) {
      return std::nullopt;
    }
    left -= 1 + static_cast<std::size_t>(before);
    out[num++] = static_cast<std::int32_t>(left);
  }
  std::reverse(out, out + num);
  out[num++] = static_cast<std::int32_t>(positions.size());
  return num;
}

// Written once and compiled twice, for every processor and for AVX2: blocks without a zero, nearly all, take no branch
// per item.
template <typename Position>
[[gnu::always_inline]] inline std::size_t scan_all(std::span<const Position> positions, std::int32_t* out) noexcept {
  std::size_t num = 0;
  const auto scan = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      out[num] = static_cast<std::int32_t>(i);
      num += positions[i] == 0 ? 1 : 0;
    }
  };
  std::size_t begin = 0;
  for (; begin + kBlock <= positions.size(); begin += kBlock) {
    Position zeros = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      zeros |= static_cast<Position>(positions[begin + i] == 0);
    }
    if (zeros != 0) {
      scan(begin, begin + kBlock);
    }
  }
  scan(begin, positions.size());
  out[num++] = static_cast<std::int32_t>(positions.size());
  return num;
}

#if MTF_HAS_AVX2_CODE
template <typename Position>
__attribute__((target("avx2"))) std::size_t scan_all_avx2(std::span<const Position> positions,
                                                          std::int32_t* out) noexcept {
  return scan_all(positions, out);
}
#endif

template <typename Position>
std::size_t fill(std::span<const Position> positions, std::int32_t* out, Simd simd) noexcept {
  if (const std::optional<std::size_t> num = jump(positions, out)) {
    return *num;
  }
#if MTF_HAS_AVX2_CODE
  if (simd == Simd::avx2) {
    return scan_all_avx2(positions, out);
  }
#else
  static_cast<void>(simd);
#endif
  return scan_all(positions, out);
}

}  // namespace

std::size_t fill_cu_seqlens(std::span<const std::int32_t> positions, std::int32_t* out, Simd simd) noexcept {
  return fill(positions, out, simd);
}

std::size_t fill_cu_seqlens(std::span<const std::int64_t> positions, std::int32_t* out, Simd simd) noexcept {
  return fill(positions, out, simd);
}

}  // namespace mtf
