/// EVEN's draws, shuffled block by block: turn k = m B + j draws what EVEN draws at m B + pi_m(j).
///
/// pi_m is a uniformly random order of the block from the key folded with m, so at every block's end the draws are
/// EVEN's own, and in between no slot is further from EVEN than it is drawn in one block.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "mtf/random/key.hpp"
#include "mtf/schedule/even_tree.hpp"
#include "mtf/schedule/pattern.hpp"

namespace mtf {

/// Satisfies Pattern, one step a turn. Thread safety: const methods may be called from several threads; they share one
/// remembered block behind a lock, as do copies.
class ShuffledBlocks {
 public:
  ShuffledBlocks(EvenTree tree, Key key);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return tree_.num_slots(); }
  [[nodiscard]] std::uint64_t length() const noexcept { return tree_.length(); }
  [[nodiscard]] std::uint64_t period() const noexcept { return 0; }

  /// Turns per block: the power of two from 4 n on, at least 64 and at most 256.
  [[nodiscard]] std::uint32_t block_size() const noexcept { return block_size_; }

  /// Complexity: O(block_size) for a turn outside the remembered block, about 1 us; else EVEN's count and a scan.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const;
  /// Complexity: EVEN's fill and 2 to 3 ns per turn.
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const;

  [[nodiscard]] const EvenTree& even() const noexcept { return tree_; }

 private:
  static constexpr std::size_t kLargestBlock = 256;
  using Order = std::array<std::uint16_t, kLargestBlock>;

  /// The block last asked for: its order at once, its slots when asked for more than one step.
  struct Block {
    std::mutex mutex;
    std::uint64_t number = kEndless;
    std::size_t size = 0;
    bool has_slots = false;
    Order order;
    std::array<std::int32_t, kLargestBlock> slots;
  };

  /// pi of a block of `size` turns: order[j] is the place in EVEN of the block's turn j.
  void draw_order(std::uint64_t number, std::size_t size, Order& order) const noexcept;
  /// Loads the order of block `number`. The lock is held, here and below.
  void load(std::uint64_t number) const noexcept;
  /// The loaded block's slots.
  [[nodiscard]] std::span<const std::int32_t> slots() const;
  /// The draw at `offset` of the loaded block from single walks of the tree, unless its slot fills too much of it.
  [[nodiscard]] std::optional<SlotDraw> single_draw(std::size_t offset) const noexcept;
  /// Calls `use` with the slots of the block that holds `turn`, which it may not keep.
  template <class Use>
  auto with_block(std::uint64_t turn, Use use) const;

  EvenTree tree_;
  Key key_;
  std::uint32_t block_size_;
  std::shared_ptr<Block> block_;
};

}  // namespace mtf
