/// EVEN: one draw per turn, as even as the weights allow, also while the weights change.
///
/// While the weights stay, the draws are those of EvenTree, which proves its bound. When they change, each slot i keeps
/// its deficit, D_i = (the sum of its shares over the turns so far) - (its draws): exactly, in integers. The next
/// turns go to the slot whose D_i + w_i / W is largest, until a tree can take over: at least min(n, 64) turns, and
/// until every node of the new tree can start from its slots' deficits (EvenTree::start_from), at most 64. Then the
/// tree draws from there, and D_i continues to count from where it was: nothing is rounded away, however often weights
/// change.
///
/// Bound. While weights may change at every turn, all draws are of the first kind. Let A_k be the mean of the k largest
/// D, so that A_n = 0, and H_k = 1 + 1/2 + ... + 1/k. Then A_k <= H_n - H_k at every turn, whatever the weights: it
/// holds at the start, where all D are 0. Let it hold before a turn, and S be the k slots of largest D after it. If S
/// holds the slot drawn, the sum over S has grown by at most 1 and shrunk by 1. If not, S and the slot drawn are k + 1
/// slots whose sum was at most (k + 1) (H_n - H_(k+1)), has grown by at most 1, and is no less than (k + 1) / k times
/// that of S, because the slot drawn had the largest D of them: so the sum over S is at most k (H_n - H_(k+1) + 1 / (k
/// + 1)), which is k (H_n - H_k). With k = 1, no slot's deficit is ever above H_n - 1, and none has more than 1 - 1/n
/// too many, because the largest of n numbers with sum 1 is at least 1/n. That is below 2 for up to 10 slots, and no
/// rule that can't look ahead does better: weights that always fall on the slots that weren't drawn yet make the last
/// of them wait for 1/n + 1/(n-1) + ... + 1/2. Trees in between only add what they are off when the weights change,
/// which is at most their own certificate, `deviation_bound`. Weights that don't answer the draws stay far from that
/// (docs/strategies).
///
/// Source of the bound: the cup game, M. Adler et al., "A proportionate fair scheduling rule with good worst-case
/// performance", SPAA 2003. What an online rule can't do: R. Tijdeman, "The chairman assignment problem", 1980, needs
/// to know the weights to come for its bound of 1 - 1/(2n-2).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/even_tree.hpp"
#include "mtf/schedule/patterns/with_bursts.hpp"

namespace mtf {

/// Satisfies Pattern, one step a turn.
class EvenDraws {
 public:
  /// Turns for which the slot with the largest deficit is drawn after a change of weights, at most.
  static constexpr std::size_t kMaxCatchUp = 64;

  /// Parameters and errors as of EvenTree. `deficits`: each slot's from before a change of weights, in units of
  /// 2^-kDeficitBits turns; empty for a pattern that continues nothing.
  /// Complexity: EvenTree's; O(kMaxCatchUp n) more with `deficits`.
  EvenDraws(std::span<const std::uint32_t> weights, std::span<const std::string> names,
            std::span<const std::uint64_t> limits, Key key, std::span<const std::int64_t> deficits = {});

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return tree_.num_slots(); }
  [[nodiscard]] std::uint64_t length() const noexcept { return add_steps(num_caught_up_, tree_.length()); }
  [[nodiscard]] std::uint64_t period() const noexcept { return num_caught_up_ == 0 ? tree_.period() : 0; }

  /// Complexity: EvenTree's; O(kMaxCatchUp) in the turns before the tree.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const noexcept;
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const noexcept;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const noexcept;
  [[nodiscard]] EvenTree::SlotTurns turns_of_turn(std::uint64_t begin, std::uint32_t size, std::uint32_t offset) const;
  [[nodiscard]] EvenTree::SlotTurns turns_of_slot(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const;

  /// At every turn no slot's draws are further than this from its share so far, its deficit at the start included,
  /// until a slot is exhausted.
  [[nodiscard]] double deviation_bound() const noexcept { return deviation_bound_; }

 private:
  void catch_up(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                std::span<const std::uint64_t> limits, std::span<const std::int64_t> deficits);
  [[nodiscard]] std::uint64_t count_caught_up(std::int32_t slot, std::uint64_t turn) const noexcept;
  [[nodiscard]] EvenTree::SlotTurns turns_by_filling(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const;

  EvenTree tree_;
  std::uint64_t num_caught_up_ = 0;
  std::vector<std::int32_t> caught_up_;          // the slots of the turns before the tree
  std::vector<std::uint64_t> num_caught_up_of_;  // how many of them each slot has; empty when there are none
  double deviation_bound_ = 0;
};

class WeightedEven : public WithBursts<EvenDraws> {
 public:
  explicit WeightedEven(const PatternInput& input)
      : WeightedEven(input.weights, input.names, input.burst, input.limits, input.key, input.deficits) {}
  /// `weights`: positive integers (see quantise). `names`: of the slots, so that the draws don't depend on how the
  /// slots are numbered; may be empty. `limits`: batches each slot may give; empty for none. `key`: of the epoch.
  /// `deficits`: see EvenDraws. Throws ConfigError when a weight is 0, the sum is above 2^31, sizes differ or burst is
  /// 0.
  explicit WeightedEven(std::span<const std::uint32_t> weights, std::span<const std::string> names = {},
                        std::uint64_t burst = 1, std::span<const std::uint64_t> limits = {}, Key key = {},
                        std::span<const std::int64_t> deficits = {});

  /// The certificate: at every step k, each slot's draws are within this of k w / W (and its deficit), until a
  /// slot is exhausted. At most 1.68 * burst where no slot had a deficit.
  [[nodiscard]] double deviation_bound() const noexcept { return deviation_bound_; }

 private:
  double deviation_bound_;
};

static_assert(Pattern<WeightedEven>);

}  // namespace mtf
