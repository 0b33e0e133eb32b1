#include "mtf/schedule/shuffled_blocks.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "mtf/random/fisher_yates.hpp"

namespace mtf {

ShuffledBlocks::ShuffledBlocks(EvenTree tree, Key key)
    : tree_(std::move(tree)),
      key_(fold_in(key, "blocks")),
      block_size_(std::clamp<std::uint32_t>(std::bit_ceil(std::min(tree_.num_slots(), 64U) * 4), 64, kLargestBlock)),
      block_(std::make_shared<Block>()) {}

void ShuffledBlocks::shuffle(std::uint64_t number, std::span<std::int32_t> slots) const noexcept {
  std::array<std::uint16_t, kLargestBlock> order;
  std::array<std::int32_t, kLargestBlock> even;
  const std::span<std::uint16_t> used = std::span(order).first(slots.size());
  std::iota(used.begin(), used.end(), std::uint16_t{0});
  fisher_yates(fold_in(key_, number), used);
  std::ranges::copy(slots, even.begin());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    slots[i] = even[used[i]];
  }
}

template <class Use>
auto ShuffledBlocks::with_block(std::uint64_t turn, Use use) const {
  const std::uint64_t number = turn / block_size_;
  const std::lock_guard lock(block_->mutex);
  if (block_->number != number) {
    const std::uint64_t begin = number * block_size_;
    block_->size = std::min<std::uint64_t>(block_size_, length() - begin);
    const std::span<std::int32_t> slots = std::span(block_->slots).first(block_->size);
    block_->number = kEndless;
    tree_.fill(begin, slots);
    shuffle(number, slots);
    block_->number = number;
  }
  return use(std::span<const std::int32_t>(block_->slots).first(block_->size));
}

SlotDraw ShuffledBlocks::at(std::uint64_t turn) const {
  const std::size_t offset = turn % block_size_;
  const auto [slot, num_before] = with_block(turn, [offset](std::span<const std::int32_t> slots) {
    return std::pair(slots[offset], std::ranges::count(slots.first(offset), slots[offset]));
  });
  return {slot, tree_.count(slot, turn - offset) + static_cast<std::uint64_t>(num_before)};
}

void ShuffledBlocks::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  // The ends that cut a block come from the whole block; the blocks between are dealt at once and shuffled in place.
  const auto copy_part = [&] {
    const std::size_t offset = begin % block_size_;
    const std::size_t num = with_block(begin, [&](std::span<const std::int32_t> block) {
      const std::size_t size = std::min(slots.size(), block.size() - offset);
      std::ranges::copy(block.subspan(offset, size), slots.begin());
      return size;
    });
    begin += num;
    slots = slots.subspan(num);
  };
  if (!slots.empty() && begin % block_size_ != 0) {
    copy_part();
  }
  const std::size_t whole = slots.size() - slots.size() % block_size_;
  tree_.fill(begin, slots.first(whole));
  for (std::size_t done = 0; done < whole; done += block_size_) {
    shuffle((begin + done) / block_size_, slots.subspan(done, block_size_));
  }
  begin += whole;
  slots = slots.subspan(whole);
  if (!slots.empty()) {
    copy_part();
  }
}

void ShuffledBlocks::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const std::size_t offset = turn % block_size_;
  tree_.counts(turn - offset, out);
  if (offset > 0) {
    with_block(turn, [&](std::span<const std::int32_t> slots) {
      for (const std::int32_t slot : slots.first(offset)) {
        ++out[static_cast<std::size_t>(slot)];
      }
    });
  }
}

std::uint64_t ShuffledBlocks::count(std::int32_t slot, std::uint64_t turn) const {
  const std::size_t offset = turn % block_size_;
  std::uint64_t num = tree_.count(slot, turn - offset);
  if (offset > 0) {
    num += with_block(turn, [&](std::span<const std::int32_t> slots) {
      return static_cast<std::uint64_t>(std::ranges::count(slots.first(offset), slot));
    });
  }
  return num;
}

std::uint64_t ShuffledBlocks::position(std::int32_t slot, std::uint64_t index) const {
  const std::uint64_t even = tree_.position(slot, index);
  if (even == kEndless) {
    return kEndless;
  }
  // The same draws stand in the same block, only in another order.
  const std::uint64_t begin = even - even % block_size_;
  std::uint64_t num_left = index - tree_.count(slot, begin);
  return begin + with_block(begin, [&](std::span<const std::int32_t> slots) {
           std::uint64_t offset = 0;
           while (slots[offset] != slot || num_left-- > 0) {
             ++offset;
           }
           return offset;
         });
}

}  // namespace mtf
