/// One draw per turn, as even as the weights allow: see EvenTree for the mathematics.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "mtf/random/key.hpp"
#include "mtf/schedule/burst.hpp"
#include "mtf/schedule/even_tree.hpp"

namespace mtf {

class WeightedEven : public InBursts<EvenTree> {
 public:
  /// `weights`: positive integers (see quantise). `names`: of the slots, so that the draws don't depend on how the
  /// slots are numbered; may be empty. `limits`: batches each slot may give; empty for none. `key`: of the epoch.
  /// Throws ConfigError when a weight is 0, the sum is above 2^31, sizes differ or burst is 0.
  explicit WeightedEven(std::span<const std::uint32_t> weights, std::span<const std::string> names = {},
                        std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {}, Key key = {});

  /// The certificate: at every step k, each slot's draws are within this of k w / W, until a slot is spent. At most
  /// 1.68 * burst.
  [[nodiscard]] double deviation_bound() const noexcept { return deviation_bound_; }

 private:
  double deviation_bound_;
};

static_assert(Pattern<WeightedEven>);

}  // namespace mtf
