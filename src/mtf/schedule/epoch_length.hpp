/// Where an epoch ends: the number of steps T that each policy gives.
#pragma once

#include <cstdint>
#include <span>

#include "mtf/schedule/segment.hpp"

namespace mtf {

/// Steps of each slot's block in the first round of a SEQUENTIAL pattern that begins at `breakpoint`, and of later
/// rounds (empty when there is only one).
struct Blocks {
  std::vector<std::uint64_t> first;
  std::vector<std::uint64_t> later;
};
[[nodiscard]] Blocks find_blocks(const Breakpoint& breakpoint, std::span<const std::int32_t> active);

/// Where every block of a SEQUENTIAL round is done at `breakpoint`, and rounds follow one another, the next one begins
/// there.
void begin_round_if_due(Breakpoint& breakpoint, std::span<const std::int32_t> active);

/// The epoch's number of steps as far as `breakpoint` and the pattern of `active` sources decide it; kUnbounded if that
/// can't be known yet. At least breakpoint.step. `pattern` is null when no source is left. Complexity: O(n log n); with
/// WEIGHTED RANDOM O(T) for MIN_LENGTH and MAX_LENGTH.
[[nodiscard]] std::uint64_t find_epoch_end(const Breakpoint& breakpoint, std::span<const std::int32_t> active,
                                           const AnyPattern* pattern);

}  // namespace mtf
