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

void ShuffledBlocks::draw_order(std::uint64_t number, std::size_t size, Order& order) const noexcept {
  const std::span<std::uint16_t> used = std::span(order).first(size);
  std::iota(used.begin(), used.end(), std::uint16_t{0});
  fisher_yates(fold_in(key_, number), used);
}

void ShuffledBlocks::load(std::uint64_t number) const noexcept {
  block_->number = number;
  block_->size = std::min<std::uint64_t>(block_size_, length() - number * block_size_);
  block_->has_slots = false;
  draw_order(number, block_->size, block_->order);
}

std::span<const std::int32_t> ShuffledBlocks::slots() const {
  const std::span<std::int32_t> slots = std::span(block_->slots).first(block_->size);
  if (!block_->has_slots) {
    std::array<std::int32_t, kLargestBlock> even;
    tree_.fill(block_->number * block_size_, std::span(even).first(block_->size));
    for (std::size_t i = 0; i < slots.size(); ++i) {
      slots[i] = even[block_->order[i]];
    }
    block_->has_slots = true;
  }
  return slots;
}

std::optional<SlotDraw> ShuffledBlocks::single_draw(std::size_t offset) const noexcept {
  constexpr std::uint64_t kMostDraws = 32;  // from here on dealing the whole block is faster
  const std::uint64_t begin = block_->number * block_size_;
  const std::int32_t slot = tree_.at(begin + block_->order[offset]).slot;
  const std::uint64_t first = tree_.count(slot, begin);
  const std::uint64_t last = tree_.count(slot, begin + block_->size);
  if (last - first > kMostDraws) {
    return std::nullopt;
  }
  std::array<std::uint8_t, kLargestBlock> is_drawn{};
  for (std::uint64_t index = first; index < last; ++index) {
    is_drawn[tree_.position(slot, index) - begin] = 1;
  }
  std::uint64_t index = first;
  for (std::size_t i = 0; i < offset; ++i) {
    index += is_drawn[block_->order[i]];
  }
  return SlotDraw{slot, index};
}

template <class Use>
auto ShuffledBlocks::with_block(std::uint64_t turn, Use use) const {
  const std::lock_guard lock(block_->mutex);
  if (block_->number != turn / block_size_) {
    load(turn / block_size_);
  }
  return use(slots());
}

SlotDraw ShuffledBlocks::at(std::uint64_t turn) const {
  const std::size_t offset = turn % block_size_;
  std::int32_t slot = 0;
  std::uint64_t num_before = 0;
  {
    const std::lock_guard lock(block_->mutex);
    if (block_->number != turn / block_size_) {
      load(turn / block_size_);
      // With few slots a whole block is dealt faster than one of its slots is followed through it.
      if (num_slots() > 16) {
        if (const std::optional<SlotDraw> draw = single_draw(offset)) {
          return *draw;
        }
      }
    }
    const std::span<const std::int32_t> block = slots();
    slot = block[offset];
    num_before = static_cast<std::uint64_t>(std::ranges::count(block.first(offset), slot));
  }
  return {slot, tree_.count(slot, turn - offset) + num_before};
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
  Order order;
  std::array<std::int32_t, kLargestBlock> even;
  for (std::size_t done = 0; done < whole; done += block_size_) {
    const std::span<std::int32_t> block = slots.subspan(done, block_size_);
    draw_order((begin + done) / block_size_, block_size_, order);
    std::ranges::copy(block, even.begin());
    for (std::size_t i = 0; i < block.size(); ++i) {
      block[i] = even[order[i]];
    }
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
