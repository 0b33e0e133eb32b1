/// Splits a list of positions into two in the order that one rounded division distributes them out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mtf {

/// Where the next draw of a node goes: to the light child if and only if remainder + light_weight >= weight, which also
/// steps the remainder on: remainder' = (remainder + light_weight) mod weight.
struct DistributionState {
  std::uint32_t remainder;
  std::uint32_t light_weight;
  std::uint32_t weight;  // at most 2^31
};

/// Copies `num` positions in order, those of the light child to `light`, the others to `heavy`. Neither output overlaps
/// the input; each has room for exactly its positions.
void stable_split(DistributionState state, const std::uint16_t* positions, std::size_t num, std::uint16_t* light,
                  std::uint16_t* heavy) noexcept;

/// Writes a slot at each position: `light_slot` or `heavy_slot`.
void split_slots(DistributionState state, const std::uint16_t* positions, std::size_t num, std::int32_t light_slot,
                 std::int32_t heavy_slot, std::int32_t* out) noexcept;

}  // namespace mtf
