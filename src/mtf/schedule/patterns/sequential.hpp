/// One slot after the other: slot s has the steps of its block, then comes slot s + 1; optionally round after round.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mtf/schedule/pattern.hpp"

namespace mtf {

class Sequential {
 public:
  explicit Sequential(const PatternInput& input) : Sequential(input.first_round, input.later_rounds) {}
  /// `blocks`: steps of each slot in the first round (0 leaves a slot out, kUnbounded never ends).
  /// `repeated`: steps of each slot in every later round; empty or all 0 when there is none.
  /// Throws ConfigError when there is no slot or the numbers of blocks differ.
  explicit Sequential(std::span<const std::uint64_t> blocks, std::span<const std::uint64_t> repeated = {});

  /// The same blocks in every round, or in the first only.
  Sequential(std::span<const std::uint64_t> blocks, bool cycling)
      : Sequential(blocks, cycling ? blocks : std::span<const std::uint64_t>{}) {}

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return static_cast<std::uint32_t>(first_.size() - 1); }
  [[nodiscard]] std::uint64_t length() const noexcept { return later_.back() > 0 ? kUnbounded : first_.back(); }

  /// Complexity: O(log slots).
  [[nodiscard]] SlotDraw at(std::uint64_t step) const noexcept;
  /// Complexity: O(slots.size() + blocks touched).
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const noexcept;
  void counts(std::uint64_t step, std::span<std::uint64_t> out) const noexcept;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t step) const noexcept;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const noexcept;

 private:
  std::vector<std::uint64_t> first_;  // first_[s]: steps before slot s in the first round; the sum at the end
  std::vector<std::uint64_t> later_;  // the same of a later round
};

static_assert(Pattern<Sequential>);

}  // namespace mtf
