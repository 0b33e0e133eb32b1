#include "mtf/schedule/patterns/random.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/integer_weights.hpp"

namespace mtf {
namespace {

constexpr std::size_t kBlock = 2048;
constexpr std::size_t kShortestStretch = 64;
constexpr std::size_t kMaxCached = 48;

std::vector<std::uint32_t> table_weights(std::span<const std::uint32_t> weights) {
  const std::vector<std::uint64_t> parts(weights.begin(), weights.end());
  const std::uint64_t total = std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});
  if (total == 0 || total > kMaxTotalWeight || std::ranges::find(parts, 0U) != parts.end()) {
    throw ConfigError(
        format_message("integer weights must be positive and sum to at most 2^31, got a sum of {}", total));
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
      cache_(std::make_shared<PrefixCountCache>()) {
  if (!limits_.empty()) {
    length_ = 0;
    for (const std::uint64_t limit : limits_) {
      length_ = add_steps(length_, limit);
    }
  }
  cache_->grid.push_back({.turn = 0, .counts = std::vector<std::uint64_t>(weights_.size())});
  cache_->spacing = fine_spacing_;
  cache_->cursor = cursor_from(cache_->grid.front());
}

template <class Fits>
const RandomDraws::CachedCounts& RandomDraws::last_cached(Fits fits) const {
  const CachedCounts* last = &*std::prev(std::ranges::partition_point(cache_->grid, fits));
  const auto look_at = [&](const CachedCounts& place) {
    if (place.turn > last->turn && fits(place)) {
      last = &place;
    }
  };
  std::ranges::for_each(cache_->recent, look_at);
  look_at(cache_->remembered);
  return *last;
}

std::unique_ptr<RandomDraws::DrawCursor> RandomDraws::cursor_from(const CachedCounts& place) const {
  std::vector<std::uint32_t> active(weights_);
  for (std::size_t slot = 0; slot < limits_.size(); ++slot) {
    if (place.counts[slot] == limits_[slot]) {
      active[slot] = 0;
    }
  }
  // Without limits nobody leaves and the sums are never asked for.
  return std::make_unique<DrawCursor>(
      DrawCursor{place.turn, place.counts, ActiveWeights(limits_.empty() ? std::span<const std::uint32_t>{} : active)});
}

/// Draws the next slots.size() turns.
void RandomDraws::advance(DrawCursor& cursor, std::span<std::int32_t> slots) const {
  table_.fill(key_, cursor.turn, slots);
  if (limits_.empty()) {
    for (const std::int32_t slot : slots) {
      ++cursor.counts[static_cast<std::size_t>(slot)];
    }
  } else {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      auto slot = static_cast<std::size_t>(slots[i]);
      if (cursor.counts[slot] == limits_[slot]) {
        Stream stream(fold_in(again_key_, cursor.turn + i));
        slot = cursor.active.find(stream.bounded(cursor.active.total()));
        slots[i] = static_cast<std::int32_t>(slot);
      }
      if (++cursor.counts[slot] == limits_[slot]) {
        cursor.active.remove(slot, weights_[slot]);
      }
    }
  }
  cursor.turn += slots.size();
}

/// Turns from the cursor to the next place that may be kept.
std::uint64_t RandomDraws::turns_to_keep(const DrawCursor& cursor) const noexcept {
  return fine_spacing_ - cursor.turn % fine_spacing_;
}

void RandomDraws::advance_to(DrawCursor& cursor, std::uint64_t turn) const {
  std::array<std::int32_t, kBlock> slots;
  while (cursor.turn < turn) {
    advance(cursor,
            std::span(slots).first(std::min<std::uint64_t>({kBlock, turn - cursor.turn, turns_to_keep(cursor)})));
    keep(cursor);
  }
}

/// Keeps the cursor's counts if it stands on the finest grid.
void RandomDraws::keep(const DrawCursor& cursor) const {
  if (cursor.turn % fine_spacing_ != 0) {
    return;
  }
  PrefixCountCache& kept = *cache_;
  if (cursor.turn % kept.spacing != 0) {
    if (std::ranges::find(kept.recent, cursor.turn, &CachedCounts::turn) == kept.recent.end()) {
      kept.recent[kept.next_recent] = {.turn = cursor.turn, .counts = cursor.counts};
      kept.next_recent = (kept.next_recent + 1) % kept.recent.size();
    }
    return;
  }
  const auto at = std::ranges::lower_bound(kept.grid, cursor.turn, {}, &CachedCounts::turn);
  if (at == kept.grid.end() || at->turn != cursor.turn) {
    kept.grid.insert(at, {.turn = cursor.turn, .counts = cursor.counts});
  }
  if (kept.grid.size() > kMaxCached) {
    kept.spacing *= 2;
    std::erase_if(kept.grid, [&](const CachedCounts& place) { return place.turn % kept.spacing != 0; });
  }
}

/// The cursor at `turn`. The lock is held.
RandomDraws::DrawCursor& RandomDraws::cursor_at(std::uint64_t turn) const {
  const CachedCounts& nearest = last_cached([turn](const CachedCounts& place) { return place.turn <= turn; });
  if (cache_->cursor->turn > turn || cache_->cursor->turn < nearest.turn) {
    cache_->cursor = cursor_from(nearest);
  }
  advance_to(*cache_->cursor, turn);
  return *cache_->cursor;
}

std::int32_t RandomDraws::slot_at(std::uint64_t turn) const noexcept {
  const std::uint64_t pair = Stream(key_, turn / 2).next();
  return static_cast<std::int32_t>(table_(static_cast<std::uint32_t>(turn % 2 == 0 ? pair : pair >> 32)));
}

SlotDraw RandomDraws::at(std::uint64_t turn) const {
  const std::lock_guard lock(cache_->mutex);
  DrawCursor& cursor = cursor_at(turn);
  if (limits_.empty()) {
    const std::int32_t slot = slot_at(turn);
    return {slot, cursor.counts[static_cast<std::size_t>(slot)]};
  }
  std::int32_t slot = 0;
  advance(cursor, {&slot, 1});
  keep(cursor);
  return {slot, cursor.counts[static_cast<std::size_t>(slot)] - 1};
}

void RandomDraws::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  if (limits_.empty()) {
    table_.fill(key_, begin, slots);
    return;
  }
  const std::lock_guard lock(cache_->mutex);
  DrawCursor& cursor = cursor_at(begin);
  while (!slots.empty()) {
    const auto part = slots.first(std::min<std::uint64_t>({kBlock, slots.size(), turns_to_keep(cursor)}));
    advance(cursor, part);
    keep(cursor);
    slots = slots.subspan(part.size());
  }
}

void RandomDraws::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const std::lock_guard lock(cache_->mutex);
  std::ranges::copy(cursor_at(turn).counts, out.begin());
}

std::uint64_t RandomDraws::count(std::int32_t slot, std::uint64_t turn) const {
  const std::lock_guard lock(cache_->mutex);
  return cursor_at(turn).counts[static_cast<std::size_t>(slot)];
}

std::uint64_t RandomDraws::position(std::int32_t slot, std::uint64_t index, std::uint64_t before) const {
  const auto s = static_cast<std::size_t>(slot);
  if (!limits_.empty() && index >= limits_[s]) {
    return kUnbounded;
  }
  const std::lock_guard lock(cache_->mutex);
  const CachedCounts& nearest = last_cached([s, index](const CachedCounts& place) { return place.counts[s] <= index; });
  const bool cursor_is_nearer = cache_->cursor->turn >= nearest.turn && cache_->cursor->counts[s] <= index;
  if (!cursor_is_nearer) {
    cache_->cursor = cursor_from(nearest);
  }
  DrawCursor& cursor = *cache_->cursor;
  std::array<std::int32_t, kBlock> slots;
  // Short stretches first: most draws that are looked for are near.
  const std::uint64_t end = std::min({before, kMaxSteps, length_});
  for (std::size_t stretch = kShortestStretch; cursor.turn < end; stretch = std::min(2 * stretch, kBlock)) {
    std::uint64_t num_left = index - cursor.counts[s];
    const std::uint64_t begin = cursor.turn;
    const auto part = std::span(slots).first(std::min<std::uint64_t>({stretch, end - begin, turns_to_keep(cursor)}));
    advance(cursor, part);
    keep(cursor);
    if (cursor.counts[s] > index) {
      std::uint64_t offset = 0;
      while (part[offset] != slot || num_left-- > 0) {
        ++offset;
      }
      return begin + offset;
    }
  }
  return kUnbounded;
}

void RandomDraws::remember(std::uint64_t turn, std::span<const std::uint64_t> counts) const {
  std::uint64_t sum = 0;
  bool fits = counts.size() == weights_.size();
  for (std::size_t slot = 0; fits && slot < counts.size(); ++slot) {
    sum = add_steps(sum, counts[slot]);
    fits = limits_.empty() || counts[slot] <= limits_[slot];
  }
  if (!fits || sum != turn) {
    throw StateMismatch(
        format_message("the counts of turn {} must sum to it and stay within the limits, got a sum of {}", turn, sum));
  }
  const std::lock_guard lock(cache_->mutex);
  cache_->remembered = {.turn = turn, .counts = std::vector<std::uint64_t>(counts.begin(), counts.end())};
}

void WeightedRandom::remember(std::uint64_t step, std::span<const std::uint64_t> counts) const {
  if (is_drawn_once_) {
    std::vector<std::uint64_t> drawn(num_slots());
    this->counts(step, drawn);
    if (!std::ranges::equal(drawn, counts)) {
      throw StateMismatch(format_message("the counts of step {} are others than those that are drawn", step));
    }
    return;
  }
  const std::uint64_t burst = this->burst();
  std::vector<std::uint64_t> turn_counts(counts.begin(), counts.end());
  if (burst > 1 && counts.size() == num_slots()) {
    turn_counts[static_cast<std::size_t>(turns().slot_at(step / burst))] -= step % burst;
    for (std::uint64_t& count : turn_counts) {
      count /= burst;
    }
  }
  turns().remember(step / burst, turn_counts);
}

}  // namespace mtf
