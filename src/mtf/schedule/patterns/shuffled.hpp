/// EVEN's draws, shuffled block by block: turn k = m B + j draws what EVEN draws at m B + pi_m(j), B = 64.
///
/// pi_m is a uniformly random order of the block from the key and m, so at every block's end the draws are EVEN's own,
/// and in between no slot is further from EVEN than it is drawn in one block. Nothing is remembered: one draw takes the
/// first j + 1 entries of pi_m and the turns of one slot in EVEN's block, which EVEN's tree gives on one way down and
/// up.
///
/// When weights change, blocks stay where they are: a pattern that begins r turns into a block has a first block of B -
/// r turns. EVEN then makes up for the slots' deficits in these turns first, those draws included that the old block
/// still had for them, so that at every block's end the draws are within EVEN's bound, and in between within a block of
/// it, however often the weights change.
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

  /// `num_before`: turns of the first block that were drawn before the pattern begins, below kBlockSize.
  ShuffledBlocks(EvenDraws even, Key key, std::uint32_t num_before = 0);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return even_.num_slots(); }
  [[nodiscard]] std::uint64_t length() const noexcept { return even_.length(); }
  [[nodiscard]] std::uint64_t period() const noexcept { return 0; }

  /// Complexity: O(depth) of the slot for each of its draws in the block, 100 to 200 ns.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const;
  /// Complexity: EVEN's fill and about 1 ns per turn; the ends of the range cost a whole block each.
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  /// Complexity: EVEN's and a block.
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const;

  /// Turns of the block of turn `turn` that come before it.
  [[nodiscard]] std::uint32_t num_in_block(std::uint64_t turn) const noexcept {
    return static_cast<std::uint32_t>((turn + num_before_) % kBlockSize);
  }
  [[nodiscard]] const EvenDraws& even() const noexcept { return even_; }

 private:
  /// A block: turns [begin, begin + size).
  struct Block {
    std::uint64_t number;
    std::uint64_t begin;
    std::uint32_t size;
  };
  /// A turn's place in its block, and which of EVEN's turns in it come before it: bit t stands for turn begin + t.
  struct BlockPosition {
    Block block;
    std::uint64_t before;
    std::uint32_t even;  // the turn's own in EVEN, from the block's begin
  };
  [[nodiscard]] Block block_of(std::uint64_t turn) const noexcept;
  [[nodiscard]] BlockPosition position_of(std::uint64_t turn) const noexcept;
  /// Writes the slots of a block.
  void fill_block(const Block& block, std::span<std::int32_t, kBlockSize> slots) const;

  EvenDraws even_;
  BlockOrder order_;
  std::uint32_t num_before_;
};

class WeightedShuffled : public WithBursts<ShuffledBlocks> {
 public:
  explicit WeightedShuffled(const PatternInput& input)
      : WeightedShuffled(input.weights, input.names, input.burst, input.limits, input.key, input.deficits,
                         input.num_in_block) {}
  /// Parameters and errors as of WeightedEven, and ShuffledBlocks' `num_before`.
  explicit WeightedShuffled(std::span<const std::uint32_t> weights, std::span<const std::string> names = {},
                            std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {}, Key key = {},
                            std::span<const std::int64_t> deficits = {}, std::uint32_t num_before = 0)
      : WithBursts(ShuffledBlocks(EvenDraws(weights, names, turn_limits(limits, burst, weights.size()), key, deficits),
                                  key, num_before),
                   burst, limits) {}

  /// Turns of the block in which `step` lies that begin before it.
  [[nodiscard]] std::uint32_t num_in_block(std::uint64_t step) const noexcept {
    return turns().num_in_block(num_turns(step));
  }
};

static_assert(Pattern<WeightedShuffled>);

}  // namespace mtf
