/// Every slot in order, `burst` steps each, again and again.
#pragma once

#include <cstdint>
#include <span>

#include "mtf/schedule/patterns/rotation.hpp"
#include "mtf/schedule/patterns/with_bursts.hpp"

namespace mtf {

class RoundRobin : public WithBursts<Rotation> {
 public:
  explicit RoundRobin(const PatternInput& input) : RoundRobin(input.num_slots, input.burst, input.limits) {}
  /// `limits`: batches each slot may give; empty for none. Throws ConfigError when num_slots or burst is 0.
  explicit RoundRobin(std::uint32_t num_slots, std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {});
};

static_assert(Pattern<RoundRobin>);

}  // namespace mtf
