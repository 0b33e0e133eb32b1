/// Independent draws with exact integer weights: turn t is word t of the key's stream, looked up in an alias table.
///
/// A draw that falls on a spent slot is drawn again, once, from the weights of the living ones. What a turn draws thus
/// depends only on the key, the turn and which slots are spent, so that the counts at any turn are all the state there
/// is.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "mtf/random/alias_table.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/living_weights.hpp"
#include "mtf/schedule/pattern.hpp"

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
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const;

  /// The slot of a turn, without counting. Only without limits. Complexity: O(1).
  [[nodiscard]] std::int32_t slot_at(std::uint64_t turn) const noexcept;

  /// Keeps the counts at `turn`, known from a saved state, so that nothing before it has to be drawn again.
  /// Throws StateMismatch when they don't sum to `turn` or exceed a limit; they are trusted otherwise.
  void remember(std::uint64_t turn, std::span<const std::uint64_t> counts) const;

 private:
  /// The draws up to a turn, and who is alive then.
  struct Walk {
    std::uint64_t turn;
    std::vector<std::uint64_t> counts;
    LivingWeights living;
  };
  struct Place {
    std::uint64_t turn = 0;
    std::vector<std::uint64_t> counts;
  };
  struct Kept {
    std::mutex mutex;
    std::vector<Place> grid;      // in order; always begins with turn 0
    std::uint64_t spacing = 0;    // of the grid
    std::array<Place, 4> recent;  // places of the finest grid that aren't on this one; turn 0: none yet
    std::size_t next_recent = 0;
    Place remembered;  // turn 0: none yet
    std::unique_ptr<Walk> walk;
  };

  /// The last kept place that `fits`, which must be true of turn 0 and false behind the first for which it is.
  template <class Fits>
  [[nodiscard]] const Place& last_place(Fits fits) const;
  [[nodiscard]] std::unique_ptr<Walk> walk_from(const Place& place) const;
  Walk& walk_to(std::uint64_t turn) const;
  void advance(Walk& walk, std::span<std::int32_t> slots) const;
  void advance_to(Walk& walk, std::uint64_t turn) const;
  [[nodiscard]] std::uint64_t turns_to_keep(const Walk& walk) const noexcept;
  void keep(const Walk& walk) const;

  std::vector<std::uint32_t> weights_;  // of sum 2^31
  std::vector<std::uint64_t> limits_;
  AliasTable table_;
  Key key_;
  Key again_key_;
  std::uint64_t length_ = kEndless;
  std::uint64_t fine_spacing_;
  std::shared_ptr<Kept> kept_;
};

}  // namespace mtf
