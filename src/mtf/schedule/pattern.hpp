/// A pattern says which slot is drawn at every step of a segment, at any step and without replaying the steps before.
///
/// Words: a slot is an index among the active sources. A turn is what the strategy decides; it gives `burst` steps to
/// one slot. A limit is how many batches a slot may still give; a slot that has given them all leaves at once: its
/// burst is cut short and the others go on (RoundRobin and Alternating with the next in order, the weighted patterns
/// among the weights that are left).
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "mtf/random/key.hpp"

namespace mtf {

/// No limit, no length, no such step.
inline constexpr std::uint64_t kUnbounded = ~std::uint64_t{0};

/// Counts of steps from here on are treated as endless, so that sums of two fit into 64 bits.
inline constexpr std::uint64_t kMaxSteps = std::uint64_t{1} << 62;

/// What one step draws: the slot, and how often the slot was drawn before (the batch inside its source).
struct SlotDraw {
  std::int32_t slot = 0;
  std::uint64_t index = 0;

  friend constexpr bool operator==(const SlotDraw&, const SlotDraw&) = default;
};

/// All that patterns are made of; each reads its part. Spans have one item per slot where nothing else is said.
struct PatternInput {
  std::uint32_t num_slots = 0;
  std::uint64_t burst = 1;                       // steps of a turn
  std::span<const std::uint64_t> limits{};       // batches that a slot may give; empty: no limits
  std::span<const std::int32_t> cycle{};         // ALTERNATING: the slots of its pattern, in order
  std::span<const std::uint64_t> first_round{};  // SEQUENTIAL: steps of each slot's block
  std::span<const std::uint64_t> later_rounds{};
  std::span<const std::uint32_t> weights{};  // WEIGHTED
  std::span<const std::string> names{};
  std::span<const std::int64_t> deficits{};  // EVEN, SHUFFLED: of a pattern that continues another; else empty
  std::uint32_t num_in_block = 0;            // SHUFFLED: turns of the first block that were drawn before
  Key key{};                                 // of this pattern alone
};

/// What every pattern offers, besides a constructor from PatternInput. Steps count from 0; steps asked for lie below
/// `length()`. Const methods are pure functions of the pattern's value and may be called from several threads at once.
template <class P>
concept Pattern = requires(const P& pattern, std::uint64_t step, std::int32_t slot, std::span<std::int32_t> slots,
                           std::span<std::uint64_t> counts) {
  /// Number of slots.
  { pattern.num_slots() } -> std::convertible_to<std::uint32_t>;
  /// Steps until every slot is exhausted; kUnbounded where a slot has no limit.
  { pattern.length() } -> std::convertible_to<std::uint64_t>;
  /// The draw at `step` < length().
  { pattern.at(step) } -> std::same_as<SlotDraw>;
  /// The slots of steps [step, step + slots.size()), which end at or before length().
  { pattern.fill(step, slots) };
  /// Draws of each slot in [0, step), step <= length(); counts.size() == num_slots().
  { pattern.counts(step, counts) };
  /// Draws of `slot` in [0, step).
  { pattern.count(slot, step) } -> std::convertible_to<std::uint64_t>;
  /// The step of the slot's draw number `step` (from 0), the inverse of at(); kUnbounded if it has no such draw.
  { pattern.position(slot, step) } -> std::convertible_to<std::uint64_t>;
};

/// Sum of two counts of steps, kUnbounded from kMaxSteps on.
[[nodiscard]] constexpr std::uint64_t add_steps(std::uint64_t a, std::uint64_t b) noexcept {
  return a >= kMaxSteps || b >= kMaxSteps || a + b >= kMaxSteps ? kUnbounded : a + b;
}

/// Product of two counts of steps, kUnbounded from kMaxSteps on.
[[nodiscard]] constexpr std::uint64_t multiply_steps(std::uint64_t a, std::uint64_t b) noexcept {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return product >= kMaxSteps ? kUnbounded : static_cast<std::uint64_t>(product);
}

/// Continues a sequence of period `period`, of which `out` holds at least the first `period` entries (0 < period).
inline void repeat_period(std::span<std::int32_t> out, std::size_t period) noexcept {
  // Doubling up to a block that stays in the first-level cache, then block after block.
  constexpr std::size_t kBlock = 4096;
  std::size_t block = period;
  for (std::size_t done = period; done < out.size();) {
    const std::size_t num = std::min(block, out.size() - done);
    std::copy_n(out.begin(), num, out.begin() + static_cast<std::ptrdiff_t>(done));
    done += num;
    if (block < kBlock) {
      block = done;
    }
  }
}

}  // namespace mtf
