#include "mtf/schedule/patterns/sequential.hpp"

#include <algorithm>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {
namespace {

std::vector<std::uint64_t> starts(std::span<const std::uint64_t> blocks) {
  std::vector<std::uint64_t> out{0};
  for (const std::uint64_t block : blocks) {
    out.push_back(add_steps(out.back(), block));
  }
  return out;
}

/// The slot whose block holds `offset`, which lies below the sum.
std::size_t slot_at(std::span<const std::uint64_t> begins, std::uint64_t offset) noexcept {
  return static_cast<std::size_t>(std::ranges::upper_bound(begins, offset) - begins.begin()) - 1;
}

std::uint64_t block_of(std::span<const std::uint64_t> begins, std::size_t slot) noexcept {
  return begins[slot] == kUnbounded ? 0 : begins[slot + 1] - begins[slot];
}

/// Steps of `slot` among the first `offset` of a round.
std::uint64_t count_in_round(std::span<const std::uint64_t> begins, std::size_t slot, std::uint64_t offset) noexcept {
  return std::clamp(offset, begins[slot], begins[slot + 1]) - begins[slot];
}

}  // namespace

Sequential::Sequential(std::span<const std::uint64_t> blocks, std::span<const std::uint64_t> repeated)
    : first_(starts(blocks)), later_(repeated.empty() ? std::vector<std::uint64_t>(first_.size()) : starts(repeated)) {
  if (blocks.empty() || first_.size() != later_.size()) {
    throw ConfigError(format_message("blocks must have one entry per slot in each round, got {} and {}", blocks.size(),
                                     repeated.size()));
  }
}

SlotDraw Sequential::at(std::uint64_t step) const noexcept {
  if (step < first_.back()) {
    const std::size_t slot = slot_at(first_, step);
    return {static_cast<std::int32_t>(slot), step - first_[slot]};
  }
  const std::uint64_t since = step - first_.back();
  const std::uint64_t offset = since % later_.back();
  const std::size_t slot = slot_at(later_, offset);
  return {static_cast<std::int32_t>(slot),
          block_of(first_, slot) + since / later_.back() * block_of(later_, slot) + offset - later_[slot]};
}

void Sequential::fill(std::uint64_t begin, std::span<std::int32_t> slots) const noexcept {
  std::uint64_t step = begin;
  while (!slots.empty()) {
    const bool is_first = step < first_.back();
    const std::vector<std::uint64_t>& begins = is_first ? first_ : later_;
    std::uint64_t offset = is_first ? step : (step - first_.back()) % later_.back();
    std::span<std::int32_t> round = slots.first(std::min<std::uint64_t>(slots.size(), begins.back() - offset));
    std::span<std::int32_t> rest = round;
    for (std::size_t slot = slot_at(begins, offset); !rest.empty(); ++slot) {
      const auto num = std::min<std::uint64_t>(rest.size(), begins[slot + 1] - offset);
      std::ranges::fill(rest.first(num), static_cast<std::int32_t>(slot));
      rest = rest.subspan(num);
      offset += num;
    }
    if (!is_first && round.size() == begins.back()) {
      repeat_period(slots, round.size());
      return;
    }
    step += round.size();
    slots = slots.subspan(round.size());
  }
}

void Sequential::counts(std::uint64_t step, std::span<std::uint64_t> out) const noexcept {
  for (std::size_t slot = 0; slot < out.size(); ++slot) {
    out[slot] = count(static_cast<std::int32_t>(slot), step);
  }
}

std::uint64_t Sequential::count(std::int32_t slot, std::uint64_t step) const noexcept {
  const auto s = static_cast<std::size_t>(slot);
  if (step <= first_.back()) {
    return count_in_round(first_, s, step);
  }
  const std::uint64_t since = step - first_.back();
  return block_of(first_, s) + since / later_.back() * block_of(later_, s) +
         count_in_round(later_, s, since % later_.back());
}

std::uint64_t Sequential::position(std::int32_t slot, std::uint64_t index) const noexcept {
  const auto s = static_cast<std::size_t>(slot);
  const std::uint64_t in_first = block_of(first_, s);
  if (index < in_first) {
    return first_[s] + index;
  }
  const std::uint64_t per_round = block_of(later_, s);
  if (per_round == 0 || first_.back() == kUnbounded) {
    return kUnbounded;
  }
  const std::uint64_t rounds = multiply_steps((index - in_first) / per_round, later_.back());
  return add_steps(add_steps(first_.back(), rounds), later_[s] + (index - in_first) % per_round);
}

}  // namespace mtf
