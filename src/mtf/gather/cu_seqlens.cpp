#include "mtf/gather/cu_seqlens.hpp"

namespace mtf {

namespace {

constexpr std::size_t kBlock = 64;

// Written once and compiled twice, for every processor and for AVX2: blocks without a zero, nearly all, take no branch
// per item.
[[gnu::always_inline]] inline std::size_t fill(std::span<const std::int32_t> positions, std::int32_t* out) noexcept {
  std::size_t num = 0;
  const auto scan = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      out[num] = static_cast<std::int32_t>(i);
      num += positions[i] == 0 ? 1 : 0;
    }
  };
  std::size_t begin = 0;
  for (; begin + kBlock <= positions.size(); begin += kBlock) {
    std::int32_t zeros = 0;
    for (std::size_t i = 0; i < kBlock; ++i) {
      zeros |= static_cast<std::int32_t>(positions[begin + i] == 0);
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
__attribute__((target("avx2"))) std::size_t fill_avx2(std::span<const std::int32_t> positions,
                                                      std::int32_t* out) noexcept {
  return fill(positions, out);
}
#endif

}  // namespace

std::size_t fill_cu_seqlens(std::span<const std::int32_t> positions, std::int32_t* out, Simd simd) noexcept {
#if MTF_HAS_AVX2_CODE
  if (simd == Simd::avx2) {
    return fill_avx2(positions, out);
  }
#else
  static_cast<void>(simd);
#endif
  return fill(positions, out);
}

}  // namespace mtf
