#include "mtf/schedule/patterns/alternating.hpp"

#include <vector>

namespace mtf {

Alternating::Alternating(std::span<const std::int32_t> pattern, std::uint32_t num_slots, std::uint64_t burst,
                         std::span<const std::uint64_t> limits)
    : WithBursts(Rotation({pattern.begin(), pattern.end()}, num_slots, turn_limits(limits, burst, num_slots)), burst,
                 limits) {}

}  // namespace mtf
