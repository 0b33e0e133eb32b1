#include "mtf/random/block_order.hpp"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "mtf/random/philox_fill.hpp"

namespace mtf {
namespace {

constexpr std::size_t kDrawsPerWord = 8;
constexpr std::size_t kWordsPerBlock = BlockOrder::kMaxSize / kDrawsPerWord;

// 64 * 63 * ... * 57, the largest product of bounds, lies below.
constexpr std::uint64_t kMaxProduct = std::uint64_t{1} << 48;

}  // namespace

void BlockOrder::draw(std::uint64_t word_number, std::uint64_t word, std::size_t size,
                      std::uint8_t* offsets) const noexcept {
  const std::size_t begin = word_number % kWordsPerBlock * kDrawsPerWord;
  const std::size_t end = std::min(begin + kDrawsPerWord, size);
  const auto draw_all = [&](std::uint64_t left) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto product = static_cast<unsigned __int128>(left) * (size - i);
      offsets[i] = static_cast<std::uint8_t>(product >> 64);
      left = static_cast<std::uint64_t>(product);
    }
    return left;
  };
  std::uint64_t left = draw_all(word);
  if (left < kMaxProduct) [[unlikely]] {
    std::uint64_t product = 1;
    for (std::size_t i = begin; i < end; ++i) {
      product *= size - i;
    }
    Stream stream(fold_in(key_, word_number));
    while (left < (0 - product) % product) {
      left = draw_all(stream.next());
    }
  }
}

BlockOrder::Items BlockOrder::first(std::uint64_t number, std::size_t size, std::size_t num) const noexcept {
  assert(num <= size && size <= kMaxSize);
  Offsets offsets;
  for (std::size_t q = 0; q * kDrawsPerWord < num; q += 2) {
    const std::uint64_t word_number = number * kWordsPerBlock + q;
    const auto [even, odd] = Stream::block(key_, word_number / 2);
    draw(word_number, even, size, offsets.data());
    draw(word_number + 1, odd, size, offsets.data());
  }
  Items items;
  std::iota(items.begin(), items.end(), std::uint8_t{0});
  for (std::size_t i = 0; i < num; ++i) {
    std::swap(items[i], items[i + offsets[i]]);
  }
  return items;
}

void BlockOrder::shuffle(std::uint64_t number, std::span<std::int32_t> blocks) const noexcept {
  assert(blocks.size() % kMaxSize == 0);
  constexpr std::size_t kBlocksAtOnce = 16;
  std::array<std::uint32_t, 2 * kWordsPerBlock * kBlocksAtOnce> halves;
  std::array<Offsets, kBlocksAtOnce> offsets;
  while (!blocks.empty()) {
    const std::size_t num_blocks = std::min(kBlocksAtOnce, blocks.size() / kMaxSize);
    const std::uint64_t first_word = number * kWordsPerBlock;
    const std::size_t num_words = num_blocks * kWordsPerBlock;
    philox_fill(key_, 2 * first_word, std::span(halves).first(2 * num_words));
    for (std::size_t q = 0; q < num_words; ++q) {
      draw(first_word + q, halves[2 * q] | (std::uint64_t{halves[2 * q + 1]} << 32), kMaxSize,
           offsets[q / kWordsPerBlock].data());
    }
    // An item often changes places with one that was just moved, and waits for it: the items of other blocks don't.
    constexpr std::size_t kTogether = 4;
    std::size_t block = 0;
    for (; block + kTogether <= num_blocks; block += kTogether) {
      std::int32_t* const items = blocks.data() + block * kMaxSize;
      for (std::size_t i = 0; i < kMaxSize; ++i) {
        for (std::size_t b = 0; b < kTogether; ++b) {
          std::swap(items[b * kMaxSize + i], items[b * kMaxSize + i + offsets[block + b][i]]);
        }
      }
    }
    for (; block < num_blocks; ++block) {
      std::int32_t* const items = blocks.data() + block * kMaxSize;
      for (std::size_t i = 0; i < kMaxSize; ++i) {
        std::swap(items[i], items[i + offsets[block][i]]);
      }
    }
    number += num_blocks;
    blocks = blocks.subspan(num_blocks * kMaxSize);
  }
}

}  // namespace mtf
