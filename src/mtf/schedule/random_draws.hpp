/// Independent draws with exact integer weights: turn t is word t of the key's stream, looked up in an alias table.
///
/// A draw that falls on a spent slot is drawn again, once, from the weights of the living ones. What a turn draws thus
/// depends only on the key, the turn and which slots are spent, so that the counts at any turn are all the state there
/// is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "mtf/random/alias_table.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/living_weights.hpp"
#include "mtf/schedule/pattern.hpp"

namespace mtf {

/// Satisfies Pattern, one step a turn. Counting needs the draws before: counts are kept every max(2^16, 64 n) turns
/// (wider apart beyond 64 MiB) and where they were last asked for. Thread safety: const methods may be called from
/// several threads; they share the kept counts behind a lock, as do copies.
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
  struct Kept {
    std::mutex mutex;
    std::map<std::uint64_t, std::vector<std::uint64_t>> counts;  // by turn; always holds turn 0
    std::unique_ptr<Walk> walk;
    std::uint64_t spacing;
  };

  [[nodiscard]] std::unique_ptr<Walk> walk_from(std::uint64_t turn, const std::vector<std::uint64_t>& counts) const;
  Walk& walk_to(std::uint64_t turn) const;
  void advance(Walk& walk, std::span<std::int32_t> slots) const;
  void advance_to(Walk& walk, std::uint64_t turn) const;
  void keep(const Walk& walk) const;

  std::vector<std::uint32_t> weights_;  // of sum 2^31
  std::vector<std::uint64_t> limits_;
  AliasTable table_;
  Key key_;
  Key again_key_;
  std::uint64_t length_ = kEndless;
  std::shared_ptr<Kept> kept_;
};

}  // namespace mtf
