/// A segment: steps [start, end) of an epoch over which one pattern decides, and what was drawn before them.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/schedule/any_pattern.hpp"
#include "mtf/schedule/mixture_spec.hpp"

namespace mtf {

/// Where a source stands: `batch` batches of pass `pass` were given. At the end of a pass batch is its length.
struct PassPosition {
  std::uint64_t pass = 0;
  std::uint64_t batch = 0;

  friend auto operator<=>(const PassPosition&, const PassPosition&) = default;
};

/// A source's deficit is never counted beyond this, of either sign.
inline constexpr std::int64_t kMaxDeficit = std::int64_t{1} << 61;

/// All that the future of one source depends on, at a step where the schedule is decided anew.
struct SourceState {
  PassPosition position;
  std::uint64_t count = 0;                       // draws since the epoch began
  std::uint64_t origin_count = 0;                // draws since the epoch began, when the pattern began
  std::uint64_t limit = kUnbounded;              // draws from the pattern's beginning until the source runs out
  std::optional<std::uint64_t> round_count = 0;  // SEQUENTIAL: draws in the current round; none: its block is done
  /// WEIGHTED EVEN and SHUFFLED: the source's deficit when the pattern began, its share of the turns before less
  /// its draws, in units of 2^-kDeficitBits turns.
  std::int64_t deficit = 0;
  bool exhausted = false;  // it ran out and left for the rest of the epoch

  friend bool operator==(const SourceState&, const SourceState&) = default;
};

/// A step at which the schedule is decided anew, with what is known there: enough to go on without the past.
struct Breakpoint {
  std::uint64_t step = 0;          // in the epoch
  std::uint64_t origin = 0;        // the step at which the pattern in force began; an end of a pass doesn't restart it
  bool ended = false;              // the epoch ends here
  bool carries = true;             // false: a state of format 1 began it, under which changes of weights start afresh
  bool continues = false;          // EVEN, SHUFFLED: the pattern starts from the sources' deficits
  std::uint32_t num_in_block = 0;  // SHUFFLED: turns of the first block that were drawn before the pattern began
  std::shared_ptr<const MixtureSpec> spec;
  std::vector<SourceState> sources;
};

/// One draw, complete.
struct Draw {
  std::uint64_t step = 0;
  std::int32_t source = 0;
  std::uint64_t pass = 0;
  std::uint64_t batch = 0;

  friend bool operator==(const Draw&, const Draw&) = default;
};

/// Immutable; const methods may be called from several threads at once.
class Segment {
 public:
  /// `key`: of the epoch. `first_step`: batches drawn in training before the epoch began. `known`: the results of
  /// earlier computations of `end()` and `change()`, which some patterns can only repeat in O(steps).
  struct KnownSteps {
    std::uint64_t end = kUnbounded;
    std::uint64_t change = kUnbounded;
  };
  Segment(Breakpoint breakpoint, Key key, std::uint64_t first_step, std::optional<KnownSteps> known = std::nullopt);

  [[nodiscard]] const Breakpoint& breakpoint() const noexcept { return breakpoint_; }
  [[nodiscard]] std::uint64_t start() const noexcept { return breakpoint_.step; }
  /// The step at which the epoch ends if nothing changes before; kUnbounded if that can't be known yet.
  [[nodiscard]] std::uint64_t end() const noexcept { return end_; }
  /// Whether a source of unknown length can end the epoch before end(), or make it shorter.
  [[nodiscard]] bool may_end_early() const noexcept;
  /// The step at which the weights change by themselves, by a curve or because a source that has an heir is spent;
  /// kUnbounded if they don't.
  [[nodiscard]] std::uint64_t change() const noexcept { return change_; }
  /// Index of each slot's source.
  [[nodiscard]] std::span<const std::int32_t> active() const noexcept { return active_; }
  /// Null when no source is left.
  [[nodiscard]] const AnyPattern* pattern() const noexcept { return pattern_ ? &*pattern_ : nullptr; }
  /// Whether counts and the end cost O(steps): such a segment trusts what a state says about them.
  [[nodiscard]] bool is_counted() const noexcept;
  /// Takes over the draws of each source in [0, step) of the epoch, as saved, where they can't be computed cheaply.
  /// Throws StateMismatch when they contradict the step or a limit.
  void remember(std::uint64_t step, std::span<const std::uint64_t> counts) const;
  /// EVEN: how far the draws of a source may be from what the weights promise, from the pattern's beginning on, or from
  /// the epoch's on where the pattern continues another; nothing where no bound is published.
  [[nodiscard]] std::optional<double> deviation_bound() const noexcept;
  /// Draws that the weights in force promise each source per step; empty outside of WEIGHTED.
  [[nodiscard]] std::span<const double> shares() const noexcept { return shares_; }

  /// The draw at `step` in [start(), end()).
  [[nodiscard]] Draw at(std::uint64_t step) const;

  /// The step at which the pattern draws batch `draw.batch` of pass `draw.pass` of a source, the inverse of `at`;
  /// kUnbounded if it never does. It may lie behind the segment's end. Complexity: as the pattern's `position`.
  [[nodiscard]] std::uint64_t step_of(std::size_t source, PassPosition draw) const;

  /// The sources of steps [begin, begin + sources.size()).
  void fill(std::uint64_t begin, std::span<std::int32_t> sources) const;

  /// As `fill`, with the pass and the batch of each draw. `counts`: draws of each source since the epoch's start, at
  /// `begin`; moved on to the end of the range.
  void fill(std::uint64_t begin, std::span<std::int32_t> sources, std::span<std::int64_t> passes,
            std::span<std::int64_t> batches, std::span<std::uint64_t> counts) const;

  /// Draws of each source since the epoch's start, in [0, step).
  void counts(std::uint64_t step, std::span<std::uint64_t> out) const;

  /// What is known at `step`, given the counts there, for a pattern that begins there.
  [[nodiscard]] Breakpoint fresh_breakpoint(std::uint64_t step, std::span<const std::uint64_t> counts) const;
  /// The same for a pattern that continues.
  [[nodiscard]] Breakpoint continued_breakpoint(std::uint64_t step, std::span<const std::uint64_t> counts) const;

  /// Where source `source` stands after `count` draws since the epoch's start.
  [[nodiscard]] PassPosition pass_position(std::size_t source, std::uint64_t count) const noexcept;

 private:
  [[nodiscard]] std::vector<bool> spent_sources() const;
  void choose_sources(std::uint64_t training_step);
  [[nodiscard]] std::uint64_t step_of_draw(std::size_t slot, std::uint64_t index, std::uint64_t before) const;
  [[nodiscard]] std::uint64_t find_succession(std::uint64_t before) const;
  void find_end(const std::optional<KnownSteps>& known);
  void settle_deficits();
  [[nodiscard]] std::vector<std::pair<std::uint64_t, std::size_t>> exhaustions(
      std::span<const std::uint64_t> drawn) const;
  void carry_deficits(Breakpoint& breakpoint, std::uint64_t step) const;
  void make_pattern(Key key);
  [[nodiscard]] Breakpoint begun_breakpoint() const;

  Breakpoint breakpoint_;
  std::vector<std::int32_t> active_;
  std::vector<double> slot_weights_;         // WEIGHTED: as configured
  std::vector<std::uint32_t> slot_units_;    // WEIGHTED: as integers
  std::vector<std::int64_t> slot_deficits_;  // EVEN, SHUFFLED: at the pattern's beginning; empty elsewhere
  bool is_certain_ = true;                   // no source left with a deficit
  std::vector<double> shares_;
  std::optional<AnyPattern> pattern_;
  std::uint64_t change_ = kUnbounded;
  std::uint64_t end_ = kUnbounded;
};

}  // namespace mtf
