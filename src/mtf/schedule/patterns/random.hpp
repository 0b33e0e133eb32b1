/// Independent draws with exact integer weights: turn t is word t of the key's stream, looked up in an alias table.
///
/// A draw that falls on an exhausted slot is drawn again, once, from the weights of the active ones. What a turn draws
/// thus depends only on the key, the turn and which slots are exhausted, so that the counts at any turn are all the
/// state there is.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "mtf/random/alias_table.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/active_weights.hpp"
#include "mtf/schedule/patterns/with_bursts.hpp"

namespace mtf {

/// Satisfies Pattern, one step a turn. Counting needs the draws before. Counts are kept in O(n) memory, however many
/// turns there are: on a grid of max(2^16, 64 n) turns, of twice as many whenever there are more than 48, and at the
/// last places of the finest grid. So what is near the last look is found at once, and what is near an earlier one
/// after at most a 24th of the turns behind it. Thread safety: const methods may be called from several threads; they
/// share the kept counts behind a lock, as do copies.
class RandomDraws {
 public:
  /// `weights`: positive, of sum at most 2^31. `limits`: draws per slot, empty for none. Throws ConfigError otherwise.
  RandomDraws(std::span<const std::uint32_t> weights, std::span<const std::uint64_t> limits, Key key);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return static_cast<std::uint32_t>(weights_.size()); }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  [[nodiscard]] std::uint64_t period() const noexcept { return 0; }

  /// Complexity: O(turns since kept counts), about 2 ns each.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const;
  /// Complexity: O(slots.size()); with limits also O(turns since kept counts).
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const;
  /// Draws no turn from `before` on: what isn't found below it is kUnbounded.
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index, std::uint64_t before = kMaxSteps) const;

  /// The slot of a turn, without counting. Only without limits. Complexity: O(1).
  [[nodiscard]] std::int32_t slot_at(std::uint64_t turn) const noexcept;

  /// Keeps the counts at `turn`, known from a saved state, so that nothing before it has to be drawn again.
  /// Throws StateMismatch when they don't sum to `turn` or exceed a limit; they are trusted otherwise.
  void remember(std::uint64_t turn, std::span<const std::uint64_t> counts) const;

 private:
  /// The draws up to a turn, and who is alive then.
  struct DrawCursor {
    std::uint64_t turn;
    std::vector<std::uint64_t> counts;
    ActiveWeights active;
  };
  struct CachedCounts {
    std::uint64_t turn = 0;
    std::vector<std::uint64_t> counts;
  };
  struct PrefixCountCache {
    std::mutex mutex;
    std::vector<CachedCounts> grid;      // in order; always begins with turn 0
    std::uint64_t spacing = 0;           // of the grid
    std::array<CachedCounts, 4> recent;  // places of the finest grid that aren't on this one; turn 0: none yet
    std::size_t next_recent = 0;
    CachedCounts remembered;  // turn 0: none yet
    std::unique_ptr<DrawCursor> cursor;
  };

  /// The last kept place that `fits`, which must be true of turn 0 and false behind the first for which it is.
  template <class Fits>
  [[nodiscard]] const CachedCounts& last_cached(Fits fits) const;
  [[nodiscard]] std::unique_ptr<DrawCursor> cursor_from(const CachedCounts& place) const;
  DrawCursor& cursor_at(std::uint64_t turn) const;
  void advance(DrawCursor& cursor, std::span<std::int32_t> slots) const;
  void advance_to(DrawCursor& cursor, std::uint64_t turn) const;
  [[nodiscard]] std::uint64_t turns_to_keep(const DrawCursor& cursor) const noexcept;
  void keep(const DrawCursor& cursor) const;

  std::vector<std::uint32_t> weights_;  // of sum 2^31
  std::vector<std::uint64_t> limits_;
  AliasTable table_;
  Key key_;
  Key again_key_;
  std::uint64_t length_ = kUnbounded;
  std::uint64_t fine_spacing_;
  std::shared_ptr<PrefixCountCache> cache_;
};

/// With limits and a burst above 1 the whole pattern is drawn once, when it is made, to know where bursts are cut.
class WeightedRandom : public WithBursts<RandomDraws> {
 public:
  explicit WeightedRandom(const PatternInput& input)
      : WeightedRandom(input.weights, input.burst, input.limits, input.key) {}
  /// `weights`: positive integers (see quantise). `limits`: batches each slot may give; empty for none. `key`: of the
  /// epoch. Throws ConfigError when a weight is 0, the sum is above 2^31, sizes differ or burst is 0.
  explicit WeightedRandom(std::span<const std::uint32_t> weights, std::uint64_t burst = 1,
                          std::span<const std::uint64_t> limits = {}, Key key = {})
      : WithBursts(RandomDraws(weights, turn_limits(limits, burst, weights.size()), key), burst, limits),
        is_drawn_once_(burst > 1 && !limits.empty()) {}

  /// Takes the counts at `step` from a saved state, so that nothing before it has to be drawn again.
  /// Throws StateMismatch when they don't sum to `step` or exceed a limit, and where the whole pattern was drawn when
  /// they are others; they are trusted otherwise.
  void remember(std::uint64_t step, std::span<const std::uint64_t> counts) const;

 private:
  bool is_drawn_once_;
};

static_assert(Pattern<WeightedRandom>);

}  // namespace mtf
