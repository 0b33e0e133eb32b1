/// Turns stretched to bursts: step i of a burst pattern lies in turn i / burst, less what exhausted slots cut short.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "mtf/schedule/pattern.hpp"

namespace mtf {

/// Turns that each slot of limit `limits[slot]` gets at `burst` steps a turn; empty when no slot has a limit.
/// Throws ConfigError when burst is 0 or the number of limits is neither 0 nor num_slots.
[[nodiscard]] std::vector<std::uint64_t> turn_limits(std::span<const std::uint64_t> limits, std::uint64_t burst,
                                                     std::size_t num_slots);

/// Where turns begin. Every turn has `burst` steps but those listed as cut, the last turns of exhausted slots.
class TurnClock {
 public:
  struct Cut {
    std::uint64_t turn;
    std::uint64_t num_missing;
  };
  struct TurnOffset {
    std::uint64_t turn;
    std::uint64_t offset;
  };

  TurnClock(std::uint64_t burst, std::vector<Cut> cuts);

  [[nodiscard]] std::uint64_t burst() const noexcept { return burst_; }

  /// The turn of a step and the step's offset in it. Complexity: O(log cuts), one division without cuts.
  [[nodiscard]] TurnOffset locate(std::uint64_t step) const noexcept;

  /// The first step of a turn; kUnbounded from kMaxSteps on. Complexity: O(log cuts).
  [[nodiscard]] std::uint64_t start(std::uint64_t turn) const noexcept;

  /// Writes the slots of steps from `where` on, given the slots of the turns from `where.turn` on. Returns how
  /// many steps these turns gave (at most out.size()).
  std::size_t expand(TurnOffset where, std::span<const std::int32_t> turns, std::span<std::int32_t> out) const noexcept;

 private:
  std::uint64_t burst_;
  std::vector<std::uint64_t> cut_turns_;    // ascending
  std::vector<std::uint64_t> cut_lengths_;  // steps of that turn
  std::vector<std::uint64_t> cut_ends_;     // first step after that turn
};

/// A Pattern made of `Turns`, which is a Pattern itself at one step a turn and with limits in turns, and offers
/// `period()`: after how many turns it repeats, 0 if it doesn't or not soon.
template <class Turns>
class WithBursts {
 public:
  /// `turns` was built with turn_limits(limits, burst). An empty `limits` means none.
  WithBursts(Turns turns, std::uint64_t burst, std::span<const std::uint64_t> limits)
      : turns_(std::move(turns)), limits_(limits.begin(), limits.end()), clock_(burst, find_cuts(burst)) {
    length_ = limits_.empty() ? kUnbounded : 0;
    for (const std::uint64_t limit : limits_) {
      length_ = add_steps(length_, limit);
    }
  }

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return turns_.num_slots(); }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }

  /// The draw at `step` < length().
  [[nodiscard]] SlotDraw at(std::uint64_t step) const {
    const TurnClock::TurnOffset where = clock_.locate(step);
    const SlotDraw draw = turns_.at(where.turn);
    return {draw.slot, draw.index * clock_.burst() + where.offset};
  }

  /// The slots of steps [begin, begin + slots.size()). Complexity: O(slots.size()) and the turns' own.
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
    const std::uint64_t period = multiply_steps(turns_.period(), clock_.burst());
    if (period != 0 && period < slots.size()) {
      fill_plainly(begin, slots.first(period));
      repeat_period(slots, period);
    } else {
      fill_plainly(begin, slots);
    }
  }

  /// Draws of each slot in [0, step).
  void counts(std::uint64_t step, std::span<std::uint64_t> out) const {
    const TurnClock::TurnOffset where = clock_.locate(step);
    turns_.counts(where.turn, out);
    for (std::size_t slot = 0; slot < out.size(); ++slot) {
      out[slot] = capped(slot, out[slot] * clock_.burst());
    }
    if (where.offset > 0) {
      out[static_cast<std::size_t>(turns_.at(where.turn).slot)] += where.offset;
    }
  }

  /// Draws of `slot` in [0, step).
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t step) const {
    const TurnClock::TurnOffset where = clock_.locate(step);
    const std::uint64_t whole = capped(static_cast<std::size_t>(slot), turns_.count(slot, where.turn) * clock_.burst());
    return whole + (where.offset > 0 && turns_.at(where.turn).slot == slot ? where.offset : 0);
  }

  /// The step of draw number `index` of `slot`, kUnbounded if it has none.
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const {
    if (!limits_.empty() && index >= limits_[static_cast<std::size_t>(slot)]) {
      return kUnbounded;
    }
    const std::uint64_t turn = turns_.position(slot, index / clock_.burst());
    return turn == kUnbounded ? kUnbounded : add_steps(clock_.start(turn), index % clock_.burst());
  }

  /// Turns that begin before `step`.
  [[nodiscard]] std::uint64_t num_turns(std::uint64_t step) const noexcept {
    const TurnClock::TurnOffset where = clock_.locate(step);
    return where.turn + (where.offset > 0 ? 1 : 0);
  }
  [[nodiscard]] std::uint64_t burst() const noexcept { return clock_.burst(); }
  [[nodiscard]] const Turns& turns() const noexcept { return turns_; }

 private:
  [[nodiscard]] std::vector<TurnClock::Cut> find_cuts(std::uint64_t burst) const {
    std::vector<TurnClock::Cut> cuts;
    for (std::size_t slot = 0; slot < limits_.size(); ++slot) {
      const std::uint64_t limit = limits_[slot];
      if (limit < kMaxSteps && limit % burst != 0) {
        const std::uint64_t turn = turns_.position(static_cast<std::int32_t>(slot), limit / burst);
        if (turn != kUnbounded) {
          cuts.push_back({turn, burst - limit % burst});
        }
      }
    }
    return cuts;
  }

  [[nodiscard]] std::uint64_t capped(std::size_t slot, std::uint64_t count) const noexcept {
    return limits_.empty() ? count : std::min(count, limits_[slot]);
  }

  void fill_plainly(std::uint64_t begin, std::span<std::int32_t> slots) const {
    if (clock_.burst() == 1) {
      turns_.fill(begin, slots);
      return;
    }
    std::vector<std::int32_t> turns(std::min<std::size_t>(kTurnsAtOnce, slots.size() / clock_.burst() + 2));
    std::uint64_t step = begin;
    while (!slots.empty()) {
      const TurnClock::TurnOffset where = clock_.locate(step);
      const TurnClock::TurnOffset last = clock_.locate(step + slots.size() - 1);
      const auto num_turns = std::min<std::uint64_t>(turns.size(), last.turn - where.turn + 1);
      turns_.fill(where.turn, std::span(turns).first(num_turns));
      const std::size_t num_steps = clock_.expand(where, std::span(turns).first(num_turns), slots);
      step += num_steps;
      slots = slots.subspan(num_steps);
    }
  }

  static constexpr std::size_t kTurnsAtOnce = std::size_t{1} << 16;

  Turns turns_;
  std::vector<std::uint64_t> limits_;
  TurnClock clock_;
  std::uint64_t length_ = 0;
};

}  // namespace mtf
