/// Which instructions the bulk functions may use on this machine.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define MTF_HAS_AVX2_CODE 1
#else
#define MTF_HAS_AVX2_CODE 0
#endif

namespace mtf {

/// Instruction sets with code of their own. Every one gives the same bits; only the time differs.
enum class Simd { portable, avx2 };

/// The fastest one that this processor runs. Complexity: O(1), looked up once.
[[nodiscard]] inline Simd best_simd() noexcept {
#if MTF_HAS_AVX2_CODE
  static const Simd best = __builtin_cpu_supports("avx2") ? Simd::avx2 : Simd::portable;
  return best;
#else
  return Simd::portable;
#endif
}

}  // namespace mtf
