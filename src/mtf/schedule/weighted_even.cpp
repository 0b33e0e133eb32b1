#include "mtf/schedule/weighted_even.hpp"

namespace mtf {

WeightedEven::WeightedEven(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                           std::uint64_t burst, std::span<const std::uint64_t> limits, Key key)
    : InBursts(EvenTree(weights, names, turn_limits(limits, burst, weights.size()), key), burst, limits),
      // Inside a turn a slot's draws move in a straight line between the turn's two ends.
      deviation_bound_(turns().deviation_bound() * static_cast<double>(burst)) {}

}  // namespace mtf
