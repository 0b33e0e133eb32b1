/// Weights as integers: quantised once, compared as integers from then on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mtf {

/// Integer weights never sum to more than this.
inline constexpr std::uint64_t kMaxTotalWeight = std::uint64_t{1} << 31;

/// The weights as integers of sum at most 2^31, at least 1 for each positive weight and 0 for each 0.
///
/// Where all weights are decimals of at most 9 places, they are kept exactly: 0.7, 0.2, 0.1 become 7, 2, 1. Otherwise
/// they are apportioned to a sum of exactly 2^31, so that each share is right to about 2^-31.
/// Throws ConfigError for no weights, for negative, NaN, infinite and for all-zero weights.
[[nodiscard]] std::vector<std::uint32_t> quantise(std::span<const double> weights);

/// `total` units dealt in proportion to `parts` by largest remainders, at least one for each part that isn't 0 (ties:
/// the first). Each part is below 2^62, some part isn't 0, and total is at most 2^31 and at least the number of parts.
/// Complexity: O(n log n).
[[nodiscard]] std::vector<std::uint32_t> apportion(std::span<const std::uint64_t> parts, std::uint64_t total);

}  // namespace mtf
