#include "mtf/random/permutation.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <numeric>
#include <stdexcept>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/random/fisher_yates.hpp"
#include "mtf/random/philox_fill.hpp"

#if MTF_HAS_AVX2_CODE
#include <immintrin.h>
#endif

namespace mtf {

Permutation::Permutation(std::uint64_t n, Key key, std::uint64_t max_table_size) : size_(n) {
  if (n > kMaxSize) {
    throw ConfigError(format_message("a permutation has at most 2^62 elements, but n is {}.", n));
  }
  if (n <= max_table_size) {
    table_.resize(n);
    std::iota(table_.begin(), table_.end(), std::uint16_t{0});
    fisher_yates(key, table_);
    return;
  }
  const auto num_bits = static_cast<std::uint32_t>(std::bit_width(n - 1));
  num_right_bits_ = num_bits - num_bits / 2;
  left_mask_ = static_cast<std::uint32_t>((std::uint64_t{1} << (num_bits / 2)) - 1);
  right_mask_ = static_cast<std::uint32_t>((std::uint64_t{1} << num_right_bits_) - 1);
  std::array<std::uint32_t, 2 * kNumRounds> words;
  philox_fill(key, 0, words);
  for (std::size_t round = 0; round < kNumRounds; ++round) {
    addends_[round] = words[2 * round];
    factors_[round] = words[2 * round + 1] | 1;
  }
}

std::uint32_t Permutation::mix(std::uint32_t half, std::size_t round) const noexcept {
  const std::uint64_t product = std::uint64_t{half + addends_[round]} * factors_[round];
  return static_cast<std::uint32_t>(product >> 32) ^ static_cast<std::uint32_t>(product);
}

std::uint64_t Permutation::encrypt(std::uint64_t x) const noexcept {
  auto left = static_cast<std::uint32_t>(x >> num_right_bits_);
  auto right = static_cast<std::uint32_t>(x) & right_mask_;
  for (std::size_t round = 0; round < kNumRounds; round += 2) {
    left ^= mix(right, round) & left_mask_;
    right ^= mix(left, round + 1) & right_mask_;
  }
  return (std::uint64_t{left} << num_right_bits_) | right;
}

std::uint64_t Permutation::decrypt(std::uint64_t x) const noexcept {
  auto left = static_cast<std::uint32_t>(x >> num_right_bits_);
  auto right = static_cast<std::uint32_t>(x) & right_mask_;
  for (std::size_t round = kNumRounds; round > 0; round -= 2) {
    right ^= mix(left, round - 1) & right_mask_;
    left ^= mix(right, round - 2) & left_mask_;
  }
  return (std::uint64_t{left} << num_right_bits_) | right;
}

std::uint64_t Permutation::operator()(std::uint64_t i) const noexcept {
  assert(i < size_);
  if (is_table()) {
    return table_[i];
  }
  std::uint64_t image = encrypt(i);
  // guard: walk into the domain
  while (image >= size_) {
    image = encrypt(image);
  }
  return image;
}

std::uint64_t Permutation::inverse(std::uint64_t image) const noexcept {
  assert(image < size_);
  if (is_table()) {
    return static_cast<std::uint64_t>(std::ranges::find(table_, static_cast<std::uint16_t>(image)) - table_.begin());
  }
  std::uint64_t i = decrypt(image);
  while (i >= size_) {
    i = decrypt(i);
  }
  return i;
}

void Permutation::encrypt_group_portable(std::uint64_t* values) const noexcept {
  std::array<std::uint32_t, kGroup> left, right;
  for (std::size_t lane = 0; lane < kGroup; ++lane) {
    left[lane] = static_cast<std::uint32_t>(values[lane] >> num_right_bits_);
    right[lane] = static_cast<std::uint32_t>(values[lane]) & right_mask_;
  }
  for (std::size_t round = 0; round < kNumRounds; round += 2) {
    for (std::size_t lane = 0; lane < kGroup; ++lane) {
      left[lane] ^= mix(right[lane], round) & left_mask_;
    }
    for (std::size_t lane = 0; lane < kGroup; ++lane) {
      right[lane] ^= mix(left[lane], round + 1) & right_mask_;
    }
  }
  for (std::size_t lane = 0; lane < kGroup; ++lane) {
    values[lane] = (std::uint64_t{left[lane]} << num_right_bits_) | right[lane];
  }
}

#if MTF_HAS_AVX2_CODE

__attribute__((target("avx2"))) void Permutation::encrypt_groups_avx2(std::uint64_t* values,
                                                                      std::size_t num_groups) const noexcept {
  constexpr std::size_t kVectors = kGroup / 4;
  __m256i addends[kNumRounds], factors[kNumRounds];
  for (std::size_t round = 0; round < kNumRounds; ++round) {
    addends[round] = _mm256_set1_epi64x(addends_[round]);
    factors[round] = _mm256_set1_epi64x(factors_[round]);
  }
  const __m256i left_mask = _mm256_set1_epi64x(left_mask_), right_mask = _mm256_set1_epi64x(right_mask_);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(num_right_bits_));
  for (std::size_t group = 0; group < num_groups; ++group, values += kGroup) {
    auto* vectors = reinterpret_cast<__m256i*>(values);
    __m256i left[kVectors], right[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) {
      const __m256i value = _mm256_loadu_si256(vectors + v);
      left[v] = _mm256_srl_epi64(value, shift);
      right[v] = _mm256_and_si256(value, right_mask);
    }
    // The halves lie in the low words of 64-bit lanes: the sum of `mix` wraps there, and the mask clears what is above.
    for (std::size_t round = 0; round < kNumRounds; round += 2) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __m256i product = _mm256_mul_epu32(_mm256_add_epi32(right[v], addends[round]), factors[round]);
        const __m256i mixed = _mm256_xor_si256(product, _mm256_srli_epi64(product, 32));
        left[v] = _mm256_xor_si256(left[v], _mm256_and_si256(mixed, left_mask));
      }
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __m256i product = _mm256_mul_epu32(_mm256_add_epi32(left[v], addends[round + 1]), factors[round + 1]);
        const __m256i mixed = _mm256_xor_si256(product, _mm256_srli_epi64(product, 32));
        right[v] = _mm256_xor_si256(right[v], _mm256_and_si256(mixed, right_mask));
      }
    }
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm256_storeu_si256(vectors + v, _mm256_or_si256(_mm256_sll_epi64(left[v], shift), right[v]));
    }
  }
}

#endif

void Permutation::encrypt_all(std::span<std::uint64_t> values, Simd simd) const noexcept {
  const auto encrypt_groups = [&](std::uint64_t* first, std::size_t num_groups) {
#if MTF_HAS_AVX2_CODE
    if (simd == Simd::avx2) return encrypt_groups_avx2(first, num_groups);
#else
    static_cast<void>(simd);
#endif
    for (std::size_t group = 0; group < num_groups; ++group) encrypt_group_portable(first + group * kGroup);
  };
  const std::size_t num_groups = values.size() / kGroup;
  encrypt_groups(values.data(), num_groups);
  const auto rest = values.subspan(num_groups * kGroup);
  if (rest.empty()) {
    return;
  }
  std::array<std::uint64_t, kGroup> padded{};
  std::copy(rest.begin(), rest.end(), padded.begin());
  encrypt_groups(padded.data(), 1);
  std::copy_n(padded.begin(), rest.size(), rest.begin());
}

void Permutation::fill(std::uint64_t begin, std::span<std::int64_t> out, Simd simd) const {
  if (begin > size_ || out.size() > size_ - begin) {
    throw std::out_of_range(
        format_message("the indices [{}, {} + {}) do not lie within [0, {}).", begin, begin, out.size(), size_));
  }
  if (is_table()) {
    std::copy_n(table_.begin() + static_cast<std::ptrdiff_t>(begin), out.size(), out.begin());
    return;
  }
  constexpr std::size_t kChunk = 1024;
  std::array<std::uint64_t, kChunk> values;
  std::array<std::uint16_t, kChunk> places;
  for (std::size_t done = 0; done < out.size(); done += kChunk) {
    const std::size_t num = std::min(kChunk, out.size() - done);
    std::int64_t* const images = out.data() + done;
    std::iota(values.begin(), values.begin() + num, begin + done);
    encrypt_all(std::span(values).first(num), simd);
    // Images outside [0, n) are gathered at the front and encrypted again together, until none is left. Every value is
    // written at the front, and stays there only if it lies outside: no branch to mispredict.
    std::size_t num_outside = 0;
    for (std::size_t i = 0; i < num; ++i) {
      const std::uint64_t value = values[i];
      images[i] = static_cast<std::int64_t>(value);
      values[num_outside] = value;
      places[num_outside] = static_cast<std::uint16_t>(i);
      num_outside += value >= size_;
    }
    while (num_outside > 0) {
      encrypt_all(std::span(values).first(num_outside), simd);
      std::size_t num_left = 0;
      for (std::size_t i = 0; i < num_outside; ++i) {
        const std::uint64_t value = values[i];
        const std::uint16_t place = places[i];
        images[place] = static_cast<std::int64_t>(value);
        values[num_left] = value;
        places[num_left] = place;
        num_left += value >= size_;
      }
      num_outside = num_left;
    }
  }
}

}  // namespace mtf
