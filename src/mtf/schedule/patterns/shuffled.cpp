#include "mtf/schedule/patterns/shuffled.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace mtf {

ShuffledBlocks::ShuffledBlocks(EvenTree tree, Key key) : tree_(std::move(tree)), order_(fold_in(key, "blocks")) {}

std::uint32_t ShuffledBlocks::size_of_block(std::uint64_t begin) const noexcept {
  return static_cast<std::uint32_t>(std::min(kBlockSize, length() - begin));
}

ShuffledBlocks::BlockPosition ShuffledBlocks::position_of(std::uint64_t turn) const noexcept {
  const std::uint64_t offset = turn % kBlockSize;
  BlockPosition place{turn - offset, 0, size_of_block(turn - offset), 0};
  if (place.size == 0) {
    return place;  // the end of all turns, at a block's end
  }
  const bool is_end = offset == place.size;
  const BlockOrder::Items order = order_.first(turn / kBlockSize, place.size, is_end ? offset : offset + 1);
  for (std::size_t i = 0; i < offset; ++i) {
    place.before |= std::uint64_t{1} << order[i];
  }
  place.even = is_end ? 0 : order[offset];
  return place;
}

SlotDraw ShuffledBlocks::at(std::uint64_t turn) const {
  const BlockPosition place = position_of(turn);
  const EvenTree::SlotTurns drawn = tree_.turns_of_turn(place.begin, place.size, place.even);
  return {drawn.slot, drawn.count + static_cast<std::uint64_t>(std::popcount(drawn.turns & place.before))};
}

std::uint64_t ShuffledBlocks::count(std::int32_t slot, std::uint64_t turn) const {
  const BlockPosition place = position_of(turn);
  const EvenTree::SlotTurns drawn = tree_.turns_of_slot(place.begin, place.size, slot);
  return drawn.count + static_cast<std::uint64_t>(std::popcount(drawn.turns & place.before));
}

std::uint64_t ShuffledBlocks::position(std::int32_t slot, std::uint64_t index) const {
  const std::uint64_t even = tree_.position(slot, index);
  if (even == kUnbounded) {
    return kUnbounded;
  }
  // The same draws stand in the same block, only in another order.
  const std::uint64_t begin = even - even % kBlockSize;
  const std::uint32_t size = size_of_block(begin);
  const EvenTree::SlotTurns drawn = tree_.turns_of_slot(begin, size, slot);
  const BlockOrder::Items order = order_.first(begin / kBlockSize, size, size);
  std::uint64_t num_left = index - drawn.count;
  std::uint64_t offset = 0;
  while ((drawn.turns >> order[offset] & 1) == 0 || num_left-- > 0) {
    ++offset;
  }
  return begin + offset;
}

std::size_t ShuffledBlocks::fill_block(std::uint64_t begin, std::span<std::int32_t, kBlockSize> slots) const {
  const std::uint32_t size = size_of_block(begin);
  std::array<std::int32_t, kBlockSize> even;
  tree_.fill(begin, std::span(even).first(size));
  const BlockOrder::Items order = order_.first(begin / kBlockSize, size, size);
  for (std::size_t i = 0; i < size; ++i) {
    slots[i] = even[order[i]];
  }
  return size;
}

void ShuffledBlocks::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  // The ends that cut a block come from the whole block; the blocks between are dealt at once and shuffled in place.
  std::array<std::int32_t, kBlockSize> block;
  if (const std::uint64_t offset = begin % kBlockSize; offset != 0) {
    const std::size_t num = std::min(slots.size(), fill_block(begin - offset, block) - offset);
    std::copy_n(block.begin() + offset, num, slots.begin());
    begin += num;
    slots = slots.subspan(num);
  }
  const std::size_t num_whole = slots.size() - slots.size() % kBlockSize;
  tree_.fill(begin, slots.first(num_whole));
  order_.shuffle(begin / kBlockSize, slots.first(num_whole));
  begin += num_whole;
  slots = slots.subspan(num_whole);
  if (!slots.empty()) {
    fill_block(begin, block);
    std::copy_n(block.begin(), slots.size(), slots.begin());
  }
}

void ShuffledBlocks::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const std::uint64_t offset = turn % kBlockSize;
  tree_.counts(turn - offset, out);
  if (offset > 0) {
    std::array<std::int32_t, kBlockSize> block;
    fill_block(turn - offset, block);
    for (const std::int32_t slot : std::span(block).first(offset)) {
      ++out[static_cast<std::size_t>(slot)];
    }
  }
}

}  // namespace mtf
