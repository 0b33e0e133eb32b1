#include "mtf/schedule/patterns/stable_split.hpp"

namespace mtf {
namespace {

/// True if the next draw is the light child's; steps the state on. Compiles to a conditional move: which of the two it
/// is can't be predicted.
inline bool distribute(DistributionState& state) noexcept {
  const std::uint32_t threshold = state.weight - state.light_weight;
  const bool is_light = state.remainder >= threshold;
  state.remainder += is_light ? 0U - threshold : state.light_weight;
  return is_light;
}

}  // namespace

void stable_split(DistributionState state, const std::uint16_t* positions, std::size_t num, std::uint16_t* light,
                  std::uint16_t* heavy) noexcept {
  for (std::size_t i = 0; i < num; ++i) {
    const bool is_light = distribute(state);
    *(is_light ? light : heavy) = positions[i];
    light += is_light ? 1 : 0;
    heavy += is_light ? 0 : 1;
  }
}

void split_slots(DistributionState state, const std::uint16_t* positions, std::size_t num, std::int32_t light_slot,
                 std::int32_t heavy_slot, std::int32_t* out) noexcept {
  for (std::size_t i = 0; i < num; ++i) {
    out[positions[i]] = distribute(state) ? light_slot : heavy_slot;
  }
}

}  // namespace mtf
