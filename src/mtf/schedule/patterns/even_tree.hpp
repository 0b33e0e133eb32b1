/// Draws as even as can be: after c draws, slot i was drawn c w_i times up to a proven bound of at most 1.68.
///
/// The weights, integers w_i of sum W <= 2^31, are the leaves of a Huffman tree. A node of weight v = a + b that was
/// drawn c times passed floor((c a + phase) / v) draws to its lighter child (weight a) and the rest to the other, so a
/// walk from the root gives the slot and how often it was drawn before, and the way up gives the step of any draw.
/// Every node is within e = max(phase, v - 1 - phase) / v of its exact share, and a slot's deviation is at most the sum
/// of e w_i / w_u over the nodes u below the root on its path (e of u's parent). With phases in the middle, e <= 1/2,
/// Huffman's tree keeps that sum within 1.68 for all weights. Phases are drawn from the key, so that epochs differ, as
/// far from the middle as keeps it within 1.5, or in the middle where it is above that already.
///
/// An exhausted slot is taken out of its ancestors' weights at the moment of its last draw: each ancestor starts a new
/// interval, in its own clock, from the remainder it has; nothing else changes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/even_interval.hpp"

namespace mtf {

/// A slot's deficit is counted in units of 2^-kDeficitBits turns: its share of the turns so far less its draws.
inline constexpr int kDeficitBits = 48;

/// Satisfies Pattern, one step a turn.
class EvenTree {
 public:
  /// `weights`: positive, sum at most 2^31. `names`: of the slots, for an order that doesn't depend on how the slots
  /// are numbered; empty: the slots' own order. `limits`: draws per slot, empty for none.
  /// Throws ConfigError when one of these doesn't hold.
  /// Complexity: O(n log n) without limits; with limits O(sum of the leaves' depths) time and 40 bytes for each.
  EvenTree(std::span<const std::uint32_t> weights, std::span<const std::string> names,
           std::span<const std::uint64_t> limits, Key key);

  /// The tree of a segment that continues another one. `deficits`: each slot's, in units of 2^-kDeficitBits turns.
  /// No limits yet, and no phases: the tree must be given both before it is asked for draws.
  EvenTree(std::span<const std::uint32_t> weights, std::span<const std::string> names, Key key);
  /// Starts each node from its slots' deficits: y = D_light - (a / v) D, D the sum below the node, is brought to
  /// the phase (y + 1/2) v, or the nearest one in [0, v). Returns whether all of them lay in there: then each slot's
  /// deviation includes exactly its deficit.
  bool start_from(std::span<const std::int64_t> deficits);
  /// Draws per slot from here on. Once, after `start_from`.
  void set_limits(std::span<const std::uint64_t> limits);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return static_cast<std::uint32_t>(weights_.size()); }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  [[nodiscard]] std::uint64_t period() const noexcept { return is_limited_ ? 0 : total_; }

  /// Complexity: O(depth) of the slot, a binary search over intervals at each node with limits.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const noexcept;
  /// Complexity: O(depth) per draw in small steps: 0.5 to 2 ns per level.
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  /// Complexity: O(n).
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const noexcept;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const noexcept;

  /// How a slot is drawn in a block of turns: bit t of `turns` says whether at turn begin + t, `count` how often
  /// before.
  struct SlotTurns {
    std::int32_t slot;
    std::uint64_t count;
    std::uint64_t turns;
  };
  /// Of the slot that turn begin + `offset` draws, or of a given slot, in the block [begin, begin + size), size <= 64.
  /// Complexity: O(depth) for each draw of the slot in the block; O(size) levels where a slot is exhausted in the
  /// block.
  [[nodiscard]] SlotTurns turns_of_turn(std::uint64_t begin, std::uint32_t size, std::uint32_t offset) const;
  [[nodiscard]] SlotTurns turns_of_slot(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const;

  /// At every turn c and for every slot, |count - c w_i / W|, less the slot's deficit at the start, is at most
  /// this, until a slot is exhausted.
  [[nodiscard]] double deviation_bound() const noexcept { return deviation_bound_; }

 private:
  using Interval = NodeInterval;

  // A child: a node's index, or ~slot for a leaf.
  using Child = std::int32_t;

  struct Node {
    Child light;
    Child heavy;
    std::uint32_t first_interval;
    std::uint32_t num_intervals;
  };
  struct Parent {
    std::int32_t node = -1;
    bool is_light = false;
  };
  class Path;

  std::vector<std::int32_t> leaf_order(std::span<const std::string> names, Key key) const;
  void grow(std::span<const std::int32_t> leaves);
  void choose_phases(Key key);
  template <class Off>
  void certify(double all, Off off);
  void place_deaths(std::span<const std::uint64_t> limits);
  [[nodiscard]] std::uint32_t weight_of(Child child) const noexcept;
  [[nodiscard]] const Interval& interval_at(const Node& node, std::uint64_t clock) const noexcept;
  [[nodiscard]] const Interval& interval_of_draw(const Node& node, bool is_light, std::uint64_t index) const noexcept;
  [[nodiscard]] SlotDraw draw_below(Child child, std::uint64_t clock) const noexcept;
  template <class GoesLight>
  [[nodiscard]] std::optional<SlotTurns> turns_below(std::uint64_t begin, std::uint32_t size,
                                                     GoesLight goes_light) const noexcept;
  [[nodiscard]] SlotTurns turns_by_filling(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const;
  void distribute(std::int32_t* out, Child child, std::uint64_t clock, std::uint16_t* positions, std::size_t num,
                  std::uint16_t* spare) const noexcept;

  std::vector<std::uint32_t> weights_;
  std::vector<std::uint32_t> node_weights_;
  std::vector<Node> nodes_;  // children before parents; the last one is the root
  std::vector<Interval> intervals_;
  std::vector<Parent> node_parents_;
  std::vector<Parent> leaf_parents_;
  Child root_ = ~0;
  std::uint64_t total_ = 0;
  std::uint64_t length_ = kUnbounded;
  bool is_limited_ = false;
  std::vector<std::uint64_t> limits_;
  double deviation_bound_ = 0;
};

}  // namespace mtf
