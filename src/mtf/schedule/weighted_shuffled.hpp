/// One draw per turn in random order, with exact quotas per block: see ShuffledBlocks.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "mtf/random/key.hpp"
#include "mtf/schedule/burst.hpp"
#include "mtf/schedule/shuffled_blocks.hpp"

namespace mtf {

class WeightedShuffled : public InBursts<ShuffledBlocks> {
 public:
  /// Parameters and errors as of WeightedEven.
  explicit WeightedShuffled(std::span<const std::uint32_t> weights, std::span<const std::string> names = {},
                            std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {}, Key key = {})
      : InBursts(ShuffledBlocks(EvenTree(weights, names, turn_limits(limits, burst, weights.size()), key), key), burst,
                 limits) {}
};

static_assert(Pattern<WeightedShuffled>);

}  // namespace mtf
