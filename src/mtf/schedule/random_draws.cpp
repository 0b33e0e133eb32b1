#include "mtf/schedule/random_draws.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/schedule/mixture.hpp"

namespace mtf {
namespace {

constexpr std::size_t kBlock = 2048;
constexpr std::size_t kShortestStretch = 64;
constexpr std::size_t kMaxPlaces = 48;

std::vector<std::uint32_t> table_weights(std::span<const std::uint32_t> weights) {
  const std::vector<std::uint64_t> parts(weights.begin(), weights.end());
  const std::uint64_t total = std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});
  if (total == 0 || total > kMaxTotalWeight || std::ranges::find(parts, 0U) != parts.end()) {
    throw ConfigError("integer weights must be positive and sum to at most 2^31, got a sum of " +
                      std::to_string(total));
  }
  return apportion(parts, kMaxTotalWeight);
}

}  // namespace

RandomDraws::RandomDraws(std::span<const std::uint32_t> weights, std::span<const std::uint64_t> limits, Key key)
    : weights_(table_weights(weights)),
      limits_(limits.begin(), limits.end()),
      table_(weights_),
      key_(key),
      again_key_(fold_in(key, "again")),
      fine_spacing_(std::max<std::uint64_t>(std::uint64_t{1} << 16, 64 * weights_.size())),
      kept_(std::make_shared<Kept>()) {
  if (!limits_.empty()) {
    length_ = 0;
    for (const std::uint64_t limit : limits_) {
      length_ = add_steps(length_, limit);
    }
  }
  kept_->grid.push_back({.turn = 0, .counts = std::vector<std::uint64_t>(weights_.size())});
  kept_->spacing = fine_spacing_;
  kept_->walk = walk_from(kept_->grid.front());
}

template <class Fits>
const RandomDraws::Place& RandomDraws::last_place(Fits fits) const {
  const Place* last = &*std::prev(std::ranges::partition_point(kept_->grid, fits));
  const auto look_at = [&](const Place& place) {
    if (place.turn > last->turn && fits(place)) {
      last = &place;
    }
  };
  std::ranges::for_each(kept_->recent, look_at);
  look_at(kept_->remembered);
  return *last;
}

std::unique_ptr<RandomDraws::Walk> RandomDraws::walk_from(const Place& place) const {
  std::vector<std::uint32_t> living(weights_);
  for (std::size_t slot = 0; slot < limits_.size(); ++slot) {
    if (place.counts[slot] == limits_[slot]) {
      living[slot] = 0;
    }
  }
  // Without limits nobody leaves and the sums are never asked for.
  return std::make_unique<Walk>(
      Walk{place.turn, place.counts, LivingWeights(limits_.empty() ? std::span<const std::uint32_t>{} : living)});
}

/// Draws the next slots.size() turns.
void RandomDraws::advance(Walk& walk, std::span<std::int32_t> slots) const {
  table_.fill(key_, walk.turn, slots);
  if (limits_.empty()) {
    for (const std::int32_t slot : slots) {
      ++walk.counts[static_cast<std::size_t>(slot)];
    }
  } else {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      auto slot = static_cast<std::size_t>(slots[i]);
      if (walk.counts[slot] == limits_[slot]) {
        Stream stream(fold_in(again_key_, walk.turn + i));
        slot = walk.living.find(stream.bounded(walk.living.total()));
        slots[i] = static_cast<std::int32_t>(slot);
      }
      if (++walk.counts[slot] == limits_[slot]) {
        walk.living.remove(slot, weights_[slot]);
      }
    }
  }
  walk.turn += slots.size();
}

/// Turns from the walk to the next place that may be kept.
std::uint64_t RandomDraws::turns_to_keep(const Walk& walk) const noexcept {
  return fine_spacing_ - walk.turn % fine_spacing_;
}

void RandomDraws::advance_to(Walk& walk, std::uint64_t turn) const {
  std::array<std::int32_t, kBlock> slots;
  while (walk.turn < turn) {
    advance(walk, std::span(slots).first(std::min<std::uint64_t>({kBlock, turn - walk.turn, turns_to_keep(walk)})));
    keep(walk);
  }
}

/// Keeps the walk's counts if it stands on the finest grid.
void RandomDraws::keep(const Walk& walk) const {
  if (walk.turn % fine_spacing_ != 0) {
    return;
  }
  Kept& kept = *kept_;
  if (walk.turn % kept.spacing != 0) {
    if (std::ranges::find(kept.recent, walk.turn, &Place::turn) == kept.recent.end()) {
      kept.recent[kept.next_recent] = {.turn = walk.turn, .counts = walk.counts};
      kept.next_recent = (kept.next_recent + 1) % kept.recent.size();
    }
    return;
  }
  const auto at = std::ranges::lower_bound(kept.grid, walk.turn, {}, &Place::turn);
  if (at == kept.grid.end() || at->turn != walk.turn) {
    kept.grid.insert(at, {.turn = walk.turn, .counts = walk.counts});
  }
  if (kept.grid.size() > kMaxPlaces) {
    kept.spacing *= 2;
    std::erase_if(kept.grid, [&](const Place& place) { return place.turn % kept.spacing != 0; });
  }
}

/// The walk at `turn`. The lock is held.
RandomDraws::Walk& RandomDraws::walk_to(std::uint64_t turn) const {
  const Place& nearest = last_place([turn](const Place& place) { return place.turn <= turn; });
  if (kept_->walk->turn > turn || kept_->walk->turn < nearest.turn) {
    kept_->walk = walk_from(nearest);
  }
  advance_to(*kept_->walk, turn);
  return *kept_->walk;
}

std::int32_t RandomDraws::slot_at(std::uint64_t turn) const noexcept {
  const std::uint64_t pair = Stream(key_, turn / 2).next();
  return static_cast<std::int32_t>(table_(static_cast<std::uint32_t>(turn % 2 == 0 ? pair : pair >> 32)));
}

SlotDraw RandomDraws::at(std::uint64_t turn) const {
  const std::lock_guard lock(kept_->mutex);
  Walk& walk = walk_to(turn);
  if (limits_.empty()) {
    const std::int32_t slot = slot_at(turn);
    return {slot, walk.counts[static_cast<std::size_t>(slot)]};
  }
  std::int32_t slot = 0;
  advance(walk, {&slot, 1});
  keep(walk);
  return {slot, walk.counts[static_cast<std::size_t>(slot)] - 1};
}

void RandomDraws::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  if (limits_.empty()) {
    table_.fill(key_, begin, slots);
    return;
  }
  const std::lock_guard lock(kept_->mutex);
  Walk& walk = walk_to(begin);
  while (!slots.empty()) {
    const auto part = slots.first(std::min<std::uint64_t>({kBlock, slots.size(), turns_to_keep(walk)}));
    advance(walk, part);
    keep(walk);
    slots = slots.subspan(part.size());
  }
}

void RandomDraws::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const std::lock_guard lock(kept_->mutex);
  std::ranges::copy(walk_to(turn).counts, out.begin());
}

std::uint64_t RandomDraws::count(std::int32_t slot, std::uint64_t turn) const {
  const std::lock_guard lock(kept_->mutex);
  return walk_to(turn).counts[static_cast<std::size_t>(slot)];
}

std::uint64_t RandomDraws::position(std::int32_t slot, std::uint64_t index) const {
  const auto s = static_cast<std::size_t>(slot);
  if (!limits_.empty() && index >= limits_[s]) {
    return kEndless;
  }
  const std::lock_guard lock(kept_->mutex);
  const Place& nearest = last_place([s, index](const Place& place) { return place.counts[s] <= index; });
  const bool walk_is_nearer = kept_->walk->turn >= nearest.turn && kept_->walk->counts[s] <= index;
  if (!walk_is_nearer) {
    kept_->walk = walk_from(nearest);
  }
  Walk& walk = *kept_->walk;
  std::array<std::int32_t, kBlock> slots;
  // Short stretches first: most draws that are looked for are near.
  for (std::size_t stretch = kShortestStretch; walk.turn < kMaxSteps; stretch = std::min(2 * stretch, kBlock)) {
    std::uint64_t num_left = index - walk.counts[s];
    const std::uint64_t begin = walk.turn;
    const auto part = std::span(slots).first(std::min<std::uint64_t>({stretch, length_ - begin, turns_to_keep(walk)}));
    advance(walk, part);
    keep(walk);
    if (walk.counts[s] > index) {
      std::uint64_t offset = 0;
      while (part[offset] != slot || num_left-- > 0) {
        ++offset;
      }
      return begin + offset;
    }
  }
  return kEndless;
}

void RandomDraws::remember(std::uint64_t turn, std::span<const std::uint64_t> counts) const {
  std::uint64_t sum = 0;
  bool fits = counts.size() == weights_.size();
  for (std::size_t slot = 0; fits && slot < counts.size(); ++slot) {
    sum = add_steps(sum, counts[slot]);
    fits = limits_.empty() || counts[slot] <= limits_[slot];
  }
  if (!fits || sum != turn) {
    throw StateMismatch("the counts of turn " + std::to_string(turn) + " must sum to it and stay within the limits, " +
                        "got a sum of " + std::to_string(sum));
  }
  const std::lock_guard lock(kept_->mutex);
  kept_->remembered = {.turn = turn, .counts = std::vector<std::uint64_t>(counts.begin(), counts.end())};
}

}  // namespace mtf
