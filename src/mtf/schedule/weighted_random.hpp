/// One independent draw per turn: see RandomDraws.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/schedule/burst.hpp"
#include "mtf/schedule/random_draws.hpp"

namespace mtf {

/// With limits and a burst above 1 the whole pattern is drawn once, when it is made, to know where bursts are cut.
class WeightedRandom : public InBursts<RandomDraws> {
 public:
  /// `weights`: positive integers (see quantise). `limits`: batches each slot may give; empty for none. `key`: of the
  /// epoch. Throws ConfigError when a weight is 0, the sum is above 2^31, sizes differ or burst is 0.
  explicit WeightedRandom(std::span<const std::uint32_t> weights, std::uint64_t burst = 1,
                          std::span<const std::uint64_t> limits = {}, Key key = {})
      : InBursts(RandomDraws(weights, turn_limits(limits, burst, weights.size()), key), burst, limits),
        is_walked_(burst > 1 && !limits.empty()) {}

  /// Takes the counts at `step` from a saved state, so that nothing before it has to be drawn again.
  /// Throws StateMismatch when they don't sum to `step` or exceed a limit, and where the whole pattern was drawn when
  /// they are others; they are trusted otherwise.
  void remember(std::uint64_t step, std::span<const std::uint64_t> counts) const;

 private:
  bool is_walked_;
};

static_assert(Pattern<WeightedRandom>);

}  // namespace mtf
