#include "mtf/schedule/patterns/with_bursts.hpp"

#include <algorithm>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

std::vector<std::uint64_t> turn_limits(std::span<const std::uint64_t> limits, std::uint64_t burst,
                                       std::size_t num_slots) {
  if (burst == 0) {
    throw ConfigError("burst_size must be at least 1, got 0");
  }
  if (!limits.empty() && limits.size() != num_slots) {
    throw ConfigError(format_message("limits must have one entry per slot ({}), got {}", num_slots, limits.size()));
  }
  if (std::ranges::all_of(limits, [](std::uint64_t limit) { return limit >= kMaxSteps; })) {
    return {};
  }
  std::vector<std::uint64_t> turns(limits.size());
  std::ranges::transform(limits, turns.begin(), [burst](std::uint64_t limit) {
    return limit >= kMaxSteps ? kUnbounded : limit / burst + (limit % burst != 0 ? 1 : 0);
  });
  return turns;
}

TurnClock::TurnClock(std::uint64_t burst, std::vector<Cut> cuts) : burst_(burst) {
  std::ranges::sort(cuts, {}, &Cut::turn);
  for (const Cut& cut : cuts) {
    // From the cut before, not from the first turn: whole bursts up to here may be more steps than can be counted.
    const std::uint64_t end = add_steps(start(cut.turn), burst - cut.num_missing);
    if (end == kUnbounded) {
      break;
    }
    cut_turns_.push_back(cut.turn);
    cut_lengths_.push_back(burst - cut.num_missing);
    cut_ends_.push_back(end);
  }
}

TurnClock::TurnOffset TurnClock::locate(std::uint64_t step) const noexcept {
  const auto num_past = std::ranges::upper_bound(cut_ends_, step) - cut_ends_.begin();
  if (num_past == 0) {
    return {step / burst_, step % burst_};
  }
  const auto last = static_cast<std::size_t>(num_past - 1);
  const std::uint64_t since = step - cut_ends_[last];
  return {cut_turns_[last] + 1 + since / burst_, since % burst_};
}

std::uint64_t TurnClock::start(std::uint64_t turn) const noexcept {
  const auto num_past = std::ranges::lower_bound(cut_turns_, turn) - cut_turns_.begin();
  if (num_past == 0) {
    return multiply_steps(turn, burst_);
  }
  const auto last = static_cast<std::size_t>(num_past - 1);
  return add_steps(cut_ends_[last], multiply_steps(turn - cut_turns_[last] - 1, burst_));
}

std::size_t TurnClock::expand(TurnOffset where, std::span<const std::int32_t> turns,
                              std::span<std::int32_t> out) const noexcept {
  auto cut = static_cast<std::size_t>(std::ranges::lower_bound(cut_turns_, where.turn) - cut_turns_.begin());
  std::int32_t* next = out.data();
  std::int32_t* const end = next + out.size();
  std::uint64_t offset = where.offset;
  for (std::size_t i = 0; i < turns.size() && next != end; ++i) {
    std::uint64_t length = burst_;
    if (cut < cut_turns_.size() && cut_turns_[cut] == where.turn + i) {
      length = cut_lengths_[cut++];
    }
    const auto num = std::min<std::uint64_t>(length - offset, static_cast<std::uint64_t>(end - next));
    next = std::fill_n(next, num, turns[i]);
    offset = 0;
  }
  return static_cast<std::size_t>(next - out.data());
}

}  // namespace mtf
