/// Where documents begin in rows laid flat: the cumulative lengths that attention over variable lengths takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "mtf/random/cpu.hpp"

namespace mtf {

/// Writes the indices of the zeros in `positions`, in order, and positions.size() after them; gives how many were
/// written. `positions` count from 0 in each document, so that each document is found from its end by one look; where
/// they visibly don't, every item is looked at instead. `out` has room for positions.size() + 1. Requires
/// positions.size() < 2^31. Complexity: O(documents), a few ns each.
std::size_t fill_cu_seqlens(std::span<const std::int32_t> positions, std::int32_t* out,
                            Simd simd = best_simd()) noexcept;
std::size_t fill_cu_seqlens(std::span<const std::int64_t> positions, std::int32_t* out,
                            Simd simd = best_simd()) noexcept;

}  // namespace mtf
