/// Entries taking turns in a fixed order, again and again: turn t is entry t mod m of the pattern, until slots leave.
///
/// The turns of RoundRobin (every slot once) and Alternating (any pattern). Entry e of a slot that appears k times is
/// served once per round while the slot lasts, so each entry has its own number of rounds, and the number of turns in
/// the first r rounds is the sum over entries of min(rounds, r): piecewise linear in r, which makes every query a
/// binary search over the rounds where an entry leaves.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/survivors.hpp"

namespace mtf {

class Rotation {
 public:
  /// `pattern`: a slot below num_slots per entry. `limits`: turns per slot; empty for none.
  /// Throws ConfigError for an empty pattern and for entries out of range.
  /// Complexity: O(m) without limits, O(m log m) with; m = pattern.size().
  Rotation(std::vector<std::int32_t> pattern, std::uint32_t num_slots, std::span<const std::uint64_t> limits);

  [[nodiscard]] std::uint32_t num_slots() const noexcept { return static_cast<std::uint32_t>(first_entry_.size() - 1); }
  [[nodiscard]] std::uint64_t length() const noexcept;
  [[nodiscard]] std::uint64_t period() const noexcept { return limits_.empty() ? pattern_.size() : 0; }

  /// Complexity: O(log m) with limits, one division without.
  [[nodiscard]] SlotDraw at(std::uint64_t turn) const noexcept;
  void fill(std::uint64_t begin, std::span<std::int32_t> slots) const;
  /// Complexity: O(m).
  void counts(std::uint64_t turn, std::span<std::uint64_t> out) const noexcept;
  [[nodiscard]] std::uint64_t count(std::int32_t slot, std::uint64_t turn) const noexcept;
  [[nodiscard]] std::uint64_t position(std::int32_t slot, std::uint64_t index) const noexcept;

 private:
  struct RoundPosition {
    std::uint64_t round;
    std::uint32_t num_gone;  // entries that have left before this round
    std::uint32_t rank;      // among those left
  };
  [[nodiscard]] RoundPosition locate(std::uint64_t turn) const noexcept;
  [[nodiscard]] std::uint32_t entry_at(const RoundPosition& position) const noexcept;
  [[nodiscard]] std::span<const std::uint32_t> entries_of(std::int32_t slot) const noexcept;
  [[nodiscard]] std::uint64_t entry_rounds(std::uint32_t entry) const noexcept;

  std::vector<std::int32_t> pattern_;
  std::vector<std::uint32_t> entries_;      // grouped by slot, ascending in each group
  std::vector<std::uint32_t> first_entry_;  // where each slot's group begins; one more at the end
  std::vector<std::uint32_t> ordinal_;      // per entry: how many entries of its slot come before it
  std::vector<std::uint64_t> limits_;

  // Entries in the order of leaving; only those that ever leave have a round and a turn.
  std::vector<std::uint64_t> last_rounds_;  // entry q leaves after this many rounds, ascending
  std::vector<std::uint64_t> last_turns_;   // turns in that many rounds
  std::vector<std::uint32_t> leave_rank_;   // per entry: its position in the order of leaving
  Survivors survivors_;
};

}  // namespace mtf
