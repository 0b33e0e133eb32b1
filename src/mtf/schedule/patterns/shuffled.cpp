#include "mtf/schedule/patterns/shuffled.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace mtf {

ShuffledBlocks::ShuffledBlocks(EvenDraws even, Key key, std::uint32_t num_before)
    : even_(std::move(even)), order_(fold_in(key, "blocks")), num_before_(num_before) {}

ShuffledBlocks::Block ShuffledBlocks::block_of(std::uint64_t turn) const noexcept {
  const std::uint64_t number = (turn + num_before_) / kBlockSize;
  const std::uint64_t begin = number == 0 ? 0 : number * kBlockSize - num_before_;
  const std::uint64_t end = (number + 1) * kBlockSize - num_before_;
  return {number, begin, static_cast<std::uint32_t>(std::min(end, length()) - begin)};
}

ShuffledBlocks::BlockPosition ShuffledBlocks::position_of(std::uint64_t turn) const noexcept {
  BlockPosition position{block_of(turn), 0, 0};
  const Block& block = position.block;
  if (block.size == 0) {
    return position;  // the end of all turns, at a block's end
  }
  const std::uint64_t offset = turn - block.begin;
  const bool is_end = offset == block.size;
  const BlockOrder::Items order = order_.first(block.number, block.size, is_end ? offset : offset + 1);
  for (std::size_t i = 0; i < offset; ++i) {
    position.before |= std::uint64_t{1} << order[i];
  }
  position.even = is_end ? 0 : order[offset];
  return position;
}

SlotDraw ShuffledBlocks::at(std::uint64_t turn) const {
  const BlockPosition position = position_of(turn);
  const EvenTree::SlotTurns drawn = even_.turns_of_turn(position.block.begin, position.block.size, position.even);
  return {drawn.slot, drawn.count + static_cast<std::uint64_t>(std::popcount(drawn.turns & position.before))};
}

std::uint64_t ShuffledBlocks::count(std::int32_t slot, std::uint64_t turn) const {
  const BlockPosition position = position_of(turn);
  const EvenTree::SlotTurns drawn = even_.turns_of_slot(position.block.begin, position.block.size, slot);
  return drawn.count + static_cast<std::uint64_t>(std::popcount(drawn.turns & position.before));
}

std::uint64_t ShuffledBlocks::position(std::int32_t slot, std::uint64_t index) const {
  const std::uint64_t even = even_.position(slot, index);
  if (even == kUnbounded) {
    return kUnbounded;
  }
  // The same draws stand in the same block, only in another order.
  const Block block = block_of(even);
  const EvenTree::SlotTurns drawn = even_.turns_of_slot(block.begin, block.size, slot);
  const BlockOrder::Items order = order_.first(block.number, block.size, block.size);
  std::uint64_t num_left = index - drawn.count;
  std::uint64_t offset = 0;
  while ((drawn.turns >> order[offset] & 1) == 0 || num_left-- > 0) {
    ++offset;
  }
  return block.begin + offset;
}

void ShuffledBlocks::fill_block(const Block& block, std::span<std::int32_t, kBlockSize> slots) const {
  std::array<std::int32_t, kBlockSize> even;
  even_.fill(block.begin, std::span(even).first(block.size));
  const BlockOrder::Items order = order_.first(block.number, block.size, block.size);
  for (std::size_t i = 0; i < block.size; ++i) {
    slots[i] = even[order[i]];
  }
}

void ShuffledBlocks::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  // The ends that cut a block come from the whole block; the blocks between are dealt at once and shuffled in place.
  std::array<std::int32_t, kBlockSize> cut;
  const auto fill_cut = [&] {
    const Block block = block_of(begin);
    fill_block(block, cut);
    const std::uint64_t offset = begin - block.begin;
    const std::size_t num = std::min<std::size_t>(slots.size(), block.size - offset);
    std::copy_n(cut.begin() + offset, num, slots.begin());
    begin += num;
    slots = slots.subspan(num);
  };
  if (num_in_block(begin) != 0 && !slots.empty()) {
    fill_cut();
  }
  const std::size_t num_whole = slots.size() - slots.size() % kBlockSize;
  even_.fill(begin, slots.first(num_whole));
  order_.shuffle((begin + num_before_) / kBlockSize, slots.first(num_whole));
  begin += num_whole;
  slots = slots.subspan(num_whole);
  if (!slots.empty()) {
    fill_cut();
  }
}

void ShuffledBlocks::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const Block block = block_of(turn);
  even_.counts(block.begin, out);
  const std::uint64_t offset = turn - block.begin;
  if (offset > 0) {
    std::array<std::int32_t, kBlockSize> slots;
    fill_block(block, slots);
    for (const std::int32_t slot : std::span(slots).first(offset)) {
      ++out[static_cast<std::size_t>(slot)];
    }
  }
}

}  // namespace mtf
