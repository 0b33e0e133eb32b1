#include "mtf/random/philox_fill.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#if MTF_HAS_AVX2_CODE
#include <immintrin.h>
#endif

namespace mtf {

namespace {

// Blocks are made in groups, whose rounds a processor can overlap.
constexpr std::size_t kGroupBlocks = 16;
constexpr std::size_t kGroupWords = 4 * kGroupBlocks;
constexpr std::uint32_t kFactor0 = 0xD2511F53, kFactor1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

/// Blocks [block, block + 16 * num_groups). The loops over the lanes are what compilers turn into vector code.
void fill_groups_portable(Key key, std::uint64_t block, std::uint32_t* out, std::size_t num_groups) noexcept {
  for (std::size_t group = 0; group < num_groups; ++group, block += kGroupBlocks, out += kGroupWords) {
    std::array<std::uint32_t, kGroupBlocks> c0, c1, c2, c3;
    for (std::size_t lane = 0; lane < kGroupBlocks; ++lane) {
      const std::uint64_t index = block + lane;
      c0[lane] = static_cast<std::uint32_t>(index);
      c1[lane] = static_cast<std::uint32_t>(index >> 32);
      c2[lane] = static_cast<std::uint32_t>(KeyUse::stream);
      c3[lane] = 0;
    }
    auto [key0, key1] = key.words();
    for (int round = 0; round < 10; ++round, key0 += kWeyl0, key1 += kWeyl1) {
      for (std::size_t lane = 0; lane < kGroupBlocks; ++lane) {
        const std::uint64_t product0 = std::uint64_t{kFactor0} * c0[lane];
        const std::uint64_t product1 = std::uint64_t{kFactor1} * c2[lane];
        c0[lane] = static_cast<std::uint32_t>(product1 >> 32) ^ c1[lane] ^ key0;
        c1[lane] = static_cast<std::uint32_t>(product1);
        c2[lane] = static_cast<std::uint32_t>(product0 >> 32) ^ c3[lane] ^ key1;
        c3[lane] = static_cast<std::uint32_t>(product0);
      }
    }
    for (std::size_t lane = 0; lane < kGroupBlocks; ++lane) {
      out[4 * lane] = c0[lane];
      out[4 * lane + 1] = c1[lane];
      out[4 * lane + 2] = c2[lane];
      out[4 * lane + 3] = c3[lane];
    }
  }
}

#if MTF_HAS_AVX2_CODE

/// As above. Each counter word lies in the low half of a 64-bit lane; multiplications ignore what is in the high half,
/// so that a product serves at once as its low word and, shifted, as its high one.
__attribute__((target("avx2"))) void fill_groups_avx2(Key key, std::uint64_t block, std::uint32_t* out,
                                                      std::size_t num_groups) noexcept {
  constexpr std::size_t kVectors = kGroupBlocks / 4;
  static_assert(static_cast<std::uint32_t>(KeyUse::stream) == 0, "the third counter word starts as zero");
  const __m256i factor0 = _mm256_set1_epi64x(kFactor0), factor1 = _mm256_set1_epi64x(kFactor1);
  __m256i keys0[10], keys1[10];
  auto [key0, key1] = key.words();
  for (int round = 0; round < 10; ++round, key0 += kWeyl0, key1 += kWeyl1) {
    keys0[round] = _mm256_set1_epi64x(key0);
    keys1[round] = _mm256_set1_epi64x(key1);
  }
  __m256i index = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(block)), _mm256_set_epi64x(3, 2, 1, 0));
  for (std::size_t group = 0; group < num_groups; ++group) {
    __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) {
      c0[v] = index;
      c1[v] = _mm256_srli_epi64(index, 32);
      c2[v] = c3[v] = _mm256_setzero_si256();
      index = _mm256_add_epi64(index, _mm256_set1_epi64x(4));
    }
    for (int round = 0; round < 10; ++round) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __m256i product0 = _mm256_mul_epu32(c0[v], factor0), product1 = _mm256_mul_epu32(c2[v], factor1);
        c0[v] = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c1[v], keys0[round]));
        c1[v] = product1;
        c2[v] = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c3[v], keys1[round]));
        c3[v] = product0;
      }
    }
    for (std::size_t v = 0; v < kVectors; ++v, out += 16) {
      const __m256i low = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0b10101010);
      const __m256i high = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0b10101010);
      const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(even, odd, 0x20));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_permute2x128_si256(even, odd, 0x31));
    }
  }
}

#endif

void fill_groups(Key key, std::uint64_t block, std::uint32_t* out, std::size_t num_groups, Simd simd) noexcept {
#if MTF_HAS_AVX2_CODE
  if (simd == Simd::avx2) {
    return fill_groups_avx2(key, block, out, num_groups);
  }
#else
  static_cast<void>(simd);
#endif
  fill_groups_portable(key, block, out, num_groups);
}

}  // namespace

void philox_fill(Key key, std::uint64_t begin, std::span<std::uint32_t> out, Simd simd) noexcept {
  for (std::size_t done = 0; done < out.size();) {
    const std::uint64_t position = begin + done;
    const std::size_t num_groups = (out.size() - done) / kGroupWords;
    if (position % 4 == 0 && num_groups > 0) {
      fill_groups(key, position / 4, out.data() + done, num_groups, simd);
      done += num_groups * kGroupWords;
    } else {
      // A part of a group at either end: up to the next whole block, or the rest.
      std::array<std::uint32_t, kGroupWords> group;
      fill_groups(key, position / 4, group.data(), 1, simd);
      const std::size_t offset = position % 4;
      const std::size_t num = std::min(out.size() - done, kGroupWords - offset);
      std::copy_n(group.begin() + offset, num, out.begin() + static_cast<std::ptrdiff_t>(done));
      done += num;
    }
  }
}

}  // namespace mtf
