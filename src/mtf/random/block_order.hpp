/// Uniformly random orders of endlessly many small blocks, each a function of the key and the block's number.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "mtf/random/key.hpp"

namespace mtf {

/// Fisher and Yates from the front: for i = 0, 1, ... item i changes places with item i + r_i, r_i an unbiased draw
/// from [0, size - i). So the first entries of an order cost only as many draws.
///
/// Eight draws share a 64-bit word: the first is the high word of its product with the bound, the low word continues to
/// the next, and the word is unbiased for all eight when the last low word isn't below 2^64 mod the product of the
/// bounds. Word 8 m + q of the key's stream serves draws [8 q, 8 q + 8) of block m; where it is refused (once in 2^16
/// words at most), the words of the key folded with 8 m + q follow. Thread safety: pure.
/// Source: N. Brackett-Rozinsky and D. Lemire, "Batched Ranged Random Integer Generation", Softw. Pract. Exper. 2024.
class BlockOrder {
 public:
  static constexpr std::size_t kMaxSize = 64;
  using Items = std::array<std::uint8_t, kMaxSize>;

  explicit BlockOrder(Key key) noexcept : key_(key) {}

  /// Entries [0, num) of the order of [0, size) in block `number`; num <= size <= 64, number < 2^60.
  /// Complexity: O(num), about 20 ns for each sixteen draws.
  [[nodiscard]] Items first(std::uint64_t number, std::size_t size, std::size_t num) const noexcept;

  /// Puts consecutive blocks of 64 items, from block `number` on, in their orders.
  /// Complexity: about 1 ns per item.
  void shuffle(std::uint64_t number, std::span<std::int32_t> blocks) const noexcept;

 private:
  using Offsets = std::array<std::uint8_t, kMaxSize>;

  /// Draws r_i for [8 q, 8 q + 8), cut at `size`, from `word` or what follows it.
  void draw(std::uint64_t word_number, std::uint64_t word, std::size_t size, std::uint8_t* offsets) const noexcept;

  Key key_;
};

}  // namespace mtf
