/// EVEN's draws, shuffled block by block: turn k = m B + j draws what EVEN draws at m B + pi_m(j), B = 64.
///
/// pi_m is a uniformly random order of the block from the key and m, so at every block's end the draws are EVEN's own,
/// and in between no slot is further from EVEN than it is drawn in one block. Nothing is remembered: one draw takes the
/// first j + 1 entries of pi_m and the turns of one slot in EVEN's block, which EVEN's tree gives on one way down and
/// up.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "mtf/random/block_order.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/with_bursts.hpp"

namespace mtf {

/// Satisfies Pattern, one step a turn.
class ShuffledBlocks {
 public:
  /// Turns per block.
  static constexpr std::uint64_t kBlockSize = BlockOrder::kMaxSize;

  ShuffledBlocks(EvenTree tree, Key key);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return tree_.num_slots(); }
  [[nodiscard]] std::uint64_t length() const noexcept { return tree_.length(); }
  [[nodiscard]] std::uint64_t period() const noexcept { return 0; }

  /// Complexity: O(depth) of the slot for each of its draws in the block, 100 to 200 ns.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const;
  /// Complexity: EVEN's fill and about 1 ns per turn; the ends of the range cost a whole block each.
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  /// Complexity: EVEN's and a block.
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const;

  [[nodiscard]] const EvenTree& even() const noexcept { return tree_; }

 private:
  /// A turn's block, and which of EVEN's turns in it come before it: bit t stands for turn begin + t.
  struct BlockPosition {
    std::uint64_t begin;
    std::uint64_t before;
    std::uint32_t size;
    std::uint32_t even;  // the turn's own in EVEN, from begin
  };
  [[nodiscard]] BlockPosition position_of(std::uint64_t turn) const noexcept;
  [[nodiscard]] std::uint32_t size_of_block(std::uint64_t begin) const noexcept;
  /// Writes the first slots of the block at `begin`; returns how many turns it has.
  std::size_t fill_block(std::uint64_t begin, std::span<std::int32_t, kBlockSize> slots) const;

  EvenTree tree_;
  BlockOrder order_;
};

class WeightedShuffled : public WithBursts<ShuffledBlocks> {
 public:
  /// Parameters and errors as of WeightedEven.
  explicit WeightedShuffled(std::span<const std::uint32_t> weights, std::span<const std::string> names = {},
                            std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {}, Key key = {})
      : WithBursts(ShuffledBlocks(EvenTree(weights, names, turn_limits(limits, burst, weights.size()), key), key),
                   burst, limits) {}
};

static_assert(Pattern<WeightedShuffled>);

}  // namespace mtf
