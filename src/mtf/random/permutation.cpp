#include "mtf/random/permutation.hpp"

#include <bit>
#include <cassert>
#include <numeric>
#include <stdexcept>
#include <string>

#include "mtf/error.hpp"
#include "mtf/random/fisher_yates.hpp"
#include "mtf/random/philox_fill.hpp"

namespace mtf {

Permutation::Permutation(std::uint64_t n, Key key) : size_(n) {
  if (n > kMaxSize) {
    throw ConfigError("a permutation has at most 2^62 elements, but n is " + std::to_string(n) + ".");
  }
  if (n <= kMaxTableSize) {
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

std::uint64_t Permutation::encrypt(std::uint64_t x) const noexcept {
  auto left = static_cast<std::uint32_t>(x >> num_right_bits_);
  auto right = static_cast<std::uint32_t>(x) & right_mask_;
  const auto mix = [this](std::uint32_t half, std::size_t round) {
    const std::uint64_t product = std::uint64_t{half + addends_[round]} * factors_[round];
    return static_cast<std::uint32_t>(product >> 32) ^ static_cast<std::uint32_t>(product);
  };
  for (std::size_t round = 0; round < kNumRounds; round += 2) {
    left ^= mix(right, round) & left_mask_;
    right ^= mix(left, round + 1) & right_mask_;
  }
  return (std::uint64_t{left} << num_right_bits_) | right;
}

std::uint64_t Permutation::operator()(std::uint64_t i) const noexcept {
  assert(i < size_);
  if (size_ <= kMaxTableSize) return table_[i];
  std::uint64_t image = encrypt(i);
  while (image >= size_) image = encrypt(image);
  return image;
}

void Permutation::fill(std::uint64_t begin, std::span<std::int64_t> out, Simd) const {
  if (begin > size_ || out.size() > size_ - begin) {
    throw std::out_of_range("the indices [" + std::to_string(begin) + ", " + std::to_string(begin) + " + " +
                            std::to_string(out.size()) + ") do not lie within [0, " + std::to_string(size_) + ").");
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<std::int64_t>((*this)(begin + i));
  }
}

}  // namespace mtf
