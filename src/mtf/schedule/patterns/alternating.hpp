/// The entries of a pattern in order, `burst` steps each, again and again. An exhausted slot loses all its entries.
#pragma once

#include <cstdint>
#include <span>

#include "mtf/schedule/patterns/rotation.hpp"
#include "mtf/schedule/patterns/with_bursts.hpp"

namespace mtf {

class Alternating : public WithBursts<Rotation> {
 public:
  explicit Alternating(const PatternInput& input)
      : Alternating(input.cycle, input.num_slots, input.burst, input.limits) {}
  /// `pattern`: slots in [0, num_slots); a slot that isn't in it is never drawn. `limits`: batches each slot may give;
  /// empty for none. Throws ConfigError for an empty pattern, an entry out of range, burst 0.
  Alternating(std::span<const std::int32_t> pattern, std::uint32_t num_slots, std::uint64_t burst = 1,
              std::span<const std::uint64_t> limits = {});
};

static_assert(Pattern<Alternating>);

}  // namespace mtf
