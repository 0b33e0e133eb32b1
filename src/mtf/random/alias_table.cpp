#include "mtf/random/alias_table.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <numeric>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/random/philox_fill.hpp"

#if MTF_HAS_AVX2_CODE
#include <immintrin.h>
#endif

namespace mtf {

AliasTable::AliasTable(std::span<const std::uint32_t> weights) {
  const std::uint64_t total = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0});
  if (total != kTotalWeight) {
    throw ConfigError(format_message("the weights of an alias table must sum to 2^31, but the sum of these {} is {}.",
                                     weights.size(), total));
  }
  // At least two cells, so that the shift stays below the width of a word.
  const std::uint32_t num_bits =
      std::max<std::uint32_t>(1, static_cast<std::uint32_t>(std::bit_width(weights.size() - 1)));
  if (num_bits > 31) {
    throw ConfigError(format_message("an alias table has at most 2^31 weights, but there are {}.", weights.size()));
  }
  const std::size_t num_cells = std::size_t{1} << num_bits;
  const auto capacity = static_cast<std::uint32_t>(kTotalWeight >> num_bits);
  shift_ = 32 - num_bits;

  std::vector<std::uint32_t> rest(weights.begin(), weights.end());
  rest.resize(num_cells);
  std::vector<std::uint32_t> light, heavy;
  for (std::uint32_t cell = 0; cell < num_cells; ++cell) {
    (rest[cell] < capacity ? light : heavy).push_back(cell);
  }
  cells_.resize(num_cells);
  const auto set = [&](std::uint32_t cell, std::uint32_t own, std::uint32_t alias) {
    cells_[cell] = {static_cast<std::int32_t>(std::int64_t{cell} * capacity + own - 1), alias};
  };
  // Each turn fills one light cell from a heavy one. The cells' weights sum to num_cells * capacity throughout, so as
  // long as a light cell is left there is a heavy one to fill it.
  while (!light.empty()) {
    const std::uint32_t cell = light.back();
    light.pop_back();
    const std::uint32_t giver = heavy.back();
    set(cell, rest[cell], giver);
    rest[giver] -= capacity - rest[cell];
    if (rest[giver] < capacity) {
      heavy.pop_back();
      light.push_back(giver);
    }
  }
  for (const std::uint32_t cell : heavy) {
    set(cell, capacity, cell);
  }
}

#if MTF_HAS_AVX2_CODE

/// Looks up floor(num / 8) * 8 words and returns how many that is.
__attribute__((target("avx2"))) std::size_t AliasTable::look_up_avx2(const std::uint32_t* words, std::size_t num,
                                                                     std::int32_t* out) const noexcept {
  const auto* cells = reinterpret_cast<const long long*>(cells_.data());
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(shift_));
  const bool in_registers = cells_.size() <= 8;
  __m256i all_last{}, all_alias{};
  if (in_registers) {
    std::array<std::int32_t, 8> lasts{}, aliases{};
    for (std::size_t cell = 0; cell < cells_.size(); ++cell) {
      lasts[cell] = cells_[cell].last;
      aliases[cell] = static_cast<std::int32_t>(cells_[cell].alias);
    }
    all_last = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lasts.data()));
    all_alias = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(aliases.data()));
  }
  std::size_t i = 0;
  for (; i + 8 <= num; i += 8) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i));
    const __m256i cell = _mm256_srl_epi32(word, shift), half = _mm256_srli_epi32(word, 1);
    __m256i last, alias;
    if (in_registers) {
      last = _mm256_permutevar8x32_epi32(all_last, cell);
      alias = _mm256_permutevar8x32_epi32(all_alias, cell);
    } else {
      // One gathered element holds a whole cell; the two halves of a vector are put back in order by the permutation.
      const __m256 low = _mm256_castsi256_ps(_mm256_i32gather_epi64(cells, _mm256_castsi256_si128(cell), 8));
      const __m256 high = _mm256_castsi256_ps(_mm256_i32gather_epi64(cells, _mm256_extracti128_si256(cell, 1), 8));
      last = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0b10001000)), 0b11011000);
      alias = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0b11011101)), 0b11011000);
    }
    const __m256i drawn = _mm256_blendv_epi8(cell, alias, _mm256_cmpgt_epi32(half, last));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), drawn);
  }
  return i;
}

#endif

void AliasTable::fill(Key key, std::uint64_t begin, std::span<std::int32_t> out, Simd simd) const noexcept {
  constexpr std::size_t kBlock = 2048;
  std::array<std::uint32_t, kBlock> words;
  for (std::size_t done = 0; done < out.size(); done += kBlock) {
    const std::size_t num = std::min(kBlock, out.size() - done);
    philox_fill(key, begin + done, std::span(words).first(num), simd);
    std::size_t i = 0;
#if MTF_HAS_AVX2_CODE
    if (simd == Simd::avx2) {
      i = look_up_avx2(words.data(), num, out.data() + done);
    }
#endif
    for (; i < num; ++i) {
      out[done + i] = static_cast<std::int32_t>((*this)(words[i]));
    }
  }
}

}  // namespace mtf
