#include "mtf/schedule/patterns/rotation.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

Rotation::Rotation(std::vector<std::int32_t> pattern, std::uint32_t num_slots, std::span<const std::uint64_t> limits)
    : pattern_(std::move(pattern)), limits_(limits.begin(), limits.end()) {
  const std::size_t num_entries = pattern_.size();
  if (num_entries == 0) {
    throw ConfigError("the pattern must name at least one slot, got none");
  }
  first_entry_.resize(num_slots + std::size_t{1});
  for (std::size_t entry = 0; entry < num_entries; ++entry) {
    const std::int32_t slot = pattern_[entry];
    if (slot < 0 || static_cast<std::uint32_t>(slot) >= num_slots) {
      throw ConfigError(format_message("pattern[{}] must be in [0, {}), got {}", entry, num_slots, slot));
    }
    ++first_entry_[static_cast<std::size_t>(slot) + 1];
  }
  std::partial_sum(first_entry_.begin(), first_entry_.end(), first_entry_.begin());
  entries_.resize(num_entries);
  ordinal_.resize(num_entries);
  std::vector<std::uint32_t> num_seen(num_slots);
  for (std::uint32_t entry = 0; entry < num_entries; ++entry) {
    const auto slot = static_cast<std::size_t>(pattern_[entry]);
    ordinal_[entry] = num_seen[slot]++;
    entries_[first_entry_[slot] + ordinal_[entry]] = entry;
  }
  if (limits_.empty()) {
    return;
  }

  std::vector<std::uint64_t> rounds(num_entries);
  std::vector<std::uint32_t> leaving(num_entries);
  std::iota(leaving.begin(), leaving.end(), 0U);
  for (std::uint32_t entry = 0; entry < num_entries; ++entry) {
    rounds[entry] = entry_rounds(entry);
  }
  std::ranges::stable_sort(leaving, {}, [&rounds](std::uint32_t entry) { return rounds[entry]; });
  leave_rank_.resize(num_entries);
  std::uint64_t round = 0;
  std::uint64_t turn = 0;
  for (std::uint32_t rank = 0; rank < num_entries; ++rank) {
    leave_rank_[leaving[rank]] = rank;
    const std::uint64_t last = rounds[leaving[rank]];
    turn = last == kUnbounded ? kUnbounded : add_steps(turn, multiply_steps(last - round, num_entries - rank));
    if (turn != kUnbounded) {
      round = last;
      last_rounds_.push_back(last);
      last_turns_.push_back(turn);
    }
  }
  survivors_ = Survivors(leaving);
}

std::uint64_t Rotation::length() const noexcept {
  return last_turns_.size() == pattern_.size() ? last_turns_.back() : kUnbounded;
}

std::span<const std::uint32_t> Rotation::entries_of(std::int32_t slot) const noexcept {
  const auto s = static_cast<std::size_t>(slot);
  return std::span(entries_).subspan(first_entry_[s], first_entry_[s + 1] - first_entry_[s]);
}

/// Rounds in which the entry is served: its slot's turns are dealt to the slot's entries in order.
std::uint64_t Rotation::entry_rounds(std::uint32_t entry) const noexcept {
  const auto slot = static_cast<std::size_t>(pattern_[entry]);
  const std::uint64_t limit = limits_[slot];
  const std::uint64_t num_entries = first_entry_[slot + 1] - first_entry_[slot];
  if (limit == kUnbounded) {
    return kUnbounded;
  }
  return limit <= ordinal_[entry] ? 0 : (limit - ordinal_[entry] - 1) / num_entries + 1;
}

Rotation::RoundPosition Rotation::locate(std::uint64_t turn) const noexcept {
  const auto num_gone = static_cast<std::uint32_t>(std::ranges::upper_bound(last_turns_, turn) - last_turns_.begin());
  const std::uint64_t since = num_gone == 0 ? turn : turn - last_turns_[num_gone - 1];
  const std::uint64_t round = num_gone == 0 ? 0 : last_rounds_[num_gone - 1];
  const std::uint64_t num_left = pattern_.size() - num_gone;
  if (num_left == 0) {
    return {round, num_gone, 0};
  }
  return {round + since / num_left, num_gone, static_cast<std::uint32_t>(since % num_left)};
}

std::uint32_t Rotation::entry_at(const RoundPosition& position) const noexcept {
  return position.num_gone == 0 ? position.rank : survivors_.select(position.num_gone, position.rank);
}

SlotDraw Rotation::at(std::uint64_t turn) const noexcept {
  const RoundPosition position = locate(turn);
  const std::uint32_t entry = entry_at(position);
  const std::int32_t slot = pattern_[entry];
  return {slot, position.round * entries_of(slot).size() + ordinal_[entry]};
}

void Rotation::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  // Below this many steps it is cheaper to look each one up than to list who is left.
  const bool list_them = slots.size() >= pattern_.size() / 16;
  std::vector<std::uint32_t> left;
  std::vector<std::int32_t> ring;
  for (std::uint64_t turn = begin; !slots.empty();) {
    const RoundPosition position = locate(turn);
    std::uint64_t num = slots.size();
    if (position.num_gone < last_turns_.size()) {
      num = std::min(num, last_turns_[position.num_gone] - turn);
    }
    const std::span<std::int32_t> out = slots.first(num);
    const std::size_t num_left = pattern_.size() - position.num_gone;
    const std::size_t whole = std::min(out.size(), num_left);
    std::span<const std::int32_t> order = pattern_;
    if (position.num_gone > 0 && list_them) {
      if (left.empty()) {
        left.resize(pattern_.size());
        std::iota(left.begin(), left.end(), 0U);
      }
      std::erase_if(left, [&](std::uint32_t entry) { return leave_rank_[entry] < position.num_gone; });
      ring.resize(left.size());
      std::ranges::transform(left, ring.begin(), [this](std::uint32_t entry) { return pattern_[entry]; });
      order = ring;
    }
    if (position.num_gone == 0 || list_them) {
      const std::size_t before_wrap = std::min(whole, num_left - position.rank);
      // guard: chunks of a call
      std::ranges::copy(order.subspan(position.rank, before_wrap), out.begin());
      std::ranges::copy(order.first(whole - before_wrap), out.begin() + static_cast<std::ptrdiff_t>(before_wrap));
    } else {
      for (std::size_t i = 0; i < whole; ++i) {
        const auto rank = static_cast<std::uint32_t>((position.rank + i) % num_left);
        out[i] = pattern_[survivors_.select(position.num_gone, rank)];
      }
    }
    repeat_period(out, num_left);
    turn += num;
    slots = slots.subspan(num);
  }
}

void Rotation::counts(std::uint64_t turn, std::span<std::uint64_t> out) const noexcept {
  const RoundPosition position = locate(turn);
  const bool over = position.num_gone == pattern_.size();
  const std::uint32_t current = over ? 0 : entry_at(position);
  for (std::uint32_t slot = 0; slot < num_slots(); ++slot) {
    // For a slot that left long ago this many rounds may be more than can be counted.
    out[slot] = std::min(kMaxSteps, multiply_steps(position.round, entries_of(static_cast<std::int32_t>(slot)).size()));
  }
  for (std::uint32_t entry = 0; entry < current; ++entry) {
    ++out[static_cast<std::size_t>(pattern_[entry])];
  }
  for (std::size_t slot = 0; slot < limits_.size(); ++slot) {
    out[slot] = std::min(out[slot], limits_[slot]);
  }
}

std::uint64_t Rotation::count(std::int32_t slot, std::uint64_t turn) const noexcept {
  const RoundPosition position = locate(turn);
  const bool over = position.num_gone == pattern_.size();
  const std::span<const std::uint32_t> entries = entries_of(slot);
  const auto this_round = over ? 0 : std::ranges::lower_bound(entries, entry_at(position)) - entries.begin();
  const std::uint64_t num =
      add_steps(multiply_steps(position.round, entries.size()), static_cast<std::uint64_t>(this_round));
  return limits_.empty() ? num : std::min(num, limits_[static_cast<std::size_t>(slot)]);
}

std::uint64_t Rotation::position(std::int32_t slot, std::uint64_t index) const noexcept {
  const std::span<const std::uint32_t> entries = entries_of(slot);
  if (entries.empty() || (!limits_.empty() && index >= limits_[static_cast<std::size_t>(slot)])) {
    return kUnbounded;
  }
  const std::uint64_t round = index / entries.size();
  const std::uint32_t entry = entries[index % entries.size()];
  const auto num_gone =
      static_cast<std::uint32_t>(std::ranges::upper_bound(last_rounds_, round) - last_rounds_.begin());
  const std::uint64_t rounds_since = num_gone == 0 ? round : round - last_rounds_[num_gone - 1];
  const std::uint64_t start = num_gone == 0 ? 0 : last_turns_[num_gone - 1];
  const std::uint32_t rank = num_gone == 0 ? entry : survivors_.rank(num_gone, entry);
  return add_steps(start, add_steps(multiply_steps(rounds_since, pattern_.size() - num_gone), rank));
}

}  // namespace mtf
