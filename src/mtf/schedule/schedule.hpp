/// Which source gives the batch of every step: a pure function of (spec, seed, edits, position), with a cursor.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mtf/schedule/epoch.hpp"
#include "mtf/schedule/state.hpp"

namespace mtf {

/// Which epoch, from 0 on. A type of its own, because most methods take a step beside it.
struct EpochIndex {
  std::uint64_t value = 0;

  [[nodiscard]] constexpr EpochIndex next() const noexcept { return {value + 1}; }
  friend constexpr auto operator<=>(EpochIndex, EpochIndex) = default;
};

/// Calls on one Schedule must not overlap; `fill` on ranges may run beside anything.
///
/// Epochs follow from one another, so the first access to epoch e computes the epochs before it that weren't computed
/// yet. After an edit or a loaded state, epochs before that one are out of reach.
class Schedule {
 public:
  /// Throws ConfigError for the first rule of `validate` that the spec breaks.
  Schedule(MixtureSpec spec, std::uint64_t seed);

  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  /// As configured, before any edit.
  [[nodiscard]] const MixtureSpec& initial() const noexcept { return initial_; }
  /// In force at the cursor.
  [[nodiscard]] const MixtureSpec& spec();
  [[nodiscard]] EpochIndex epoch() const noexcept { return epoch_; }
  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }
  [[nodiscard]] bool epoch_done();

  /// Computes at most `num_epochs` epochs on the way to `epoch`, each of which follows from the one before; returns
  /// whether no more than that were missing. For callers who want to look up from a long computation; every other
  /// method computes all that it needs.
  bool approach(EpochIndex epoch, std::uint64_t num_epochs);

  /// Number of steps of an epoch; nothing if it can't be known yet.
  [[nodiscard]] std::optional<std::uint64_t> num_steps(EpochIndex epoch);
  /// Batches drawn in training before an epoch.
  [[nodiscard]] std::uint64_t first_step(EpochIndex epoch);
  /// Where an epoch ends, if that is at `step` or before.
  [[nodiscard]] std::optional<std::uint64_t> end_by(std::uint64_t step, EpochIndex epoch) {
    return open(epoch).end_by(step);
  }
  /// The draw at a position. Complexity: O(log n) once the epoch is there. Throws ConfigError behind the epoch's end.
  [[nodiscard]] Draw at(std::uint64_t step, EpochIndex epoch);
  /// Draws of each source in [0, step) of an epoch; one entry per source known at the cursor.
  [[nodiscard]] std::vector<std::uint64_t> counts(std::uint64_t step, EpochIndex epoch);
  /// As `counts`, where WEIGHTED segments count what their weights promise, and all others what they draw.
  [[nodiscard]] std::vector<double> expected_counts(std::uint64_t step, EpochIndex epoch);
  /// Steps [begin, end) of an epoch, cut at its end.
  [[nodiscard]] std::vector<Epoch::SegmentRange> ranges(EpochIndex epoch, std::uint64_t begin, std::uint64_t end);
  /// Writes the sources of `ranges` one after the other. Thread safety: pure.
  static void fill(std::span<const Epoch::SegmentRange> ranges, std::span<std::int32_t> sources);
  /// The first step of an epoch whose draw is known: above 0 only after more edits than are kept (see state.hpp).
  [[nodiscard]] std::uint64_t known_from(EpochIndex epoch);
  /// The step in [0, end) of an epoch that draws batch `draw.batch` of pass `draw.pass` of a source, the inverse of
  /// `at`; nothing if there is none. Throws ConfigError if that lies before known_from().
  /// Complexity: O(log n) for EVEN and SHUFFLED and the patterns without chance, O(steps) for RANDOM.
  [[nodiscard]] std::optional<std::uint64_t> step_of(std::size_t source, PassPosition draw, std::uint64_t end,
                                                     EpochIndex epoch);
  /// Where every source stands before `step` of an epoch.
  [[nodiscard]] std::vector<PassPosition> positions(std::uint64_t step, EpochIndex epoch);
  /// Where every source stands when an epoch begins.
  [[nodiscard]] std::vector<PassPosition> opening_positions(EpochIndex epoch);

  /// The next draws from the cursor, which stays; returns how many there were before the epoch's end. The three spans
  /// have the same size.
  std::size_t draws(std::span<std::int32_t> sources, std::span<std::int64_t> passes, std::span<std::int64_t> batches);
  /// Draws over which one segment decides.
  struct SegmentDraws {
    std::shared_ptr<const Segment> segment;
    std::size_t size = 0;
    std::vector<std::uint64_t> before;  ///< draws of each source since the epoch's start, at the first of them
    std::vector<std::uint64_t> after;   ///< and behind the last
  };
  /// As `draws`, where only the sources are wanted draw by draw. Writes fewer at the epoch's end, as the sizes say.
  /// Complexity: as `draws` with a third of its time a draw, and O(sources) for each segment.
  [[nodiscard]] std::vector<SegmentDraws> source_draws(std::span<std::int32_t> sources);
  /// The draw at the cursor, which moves on by one; nothing at the epoch's end. Amortised O(1): it works in blocks.
  [[nodiscard]] std::optional<Draw> next();
  /// Moves the cursor inside its epoch. Throws ConfigError behind the epoch's end.
  void advance(std::uint64_t num_steps);
  /// Opens the next epoch; the cursor must be at the end of its own.
  void next_epoch();
  void seek(EpochIndex epoch, std::uint64_t step);

  /// Edits take effect at the cursor; later events that a cursor moved back has left behind are dropped. Each returns
  /// whether anything changed, and throws ConfigError before it changes anything.
  /// One weight per source that is present, in their order. Replaces a weight curve, or with `keep_curve` rebases it
  /// here (WeightCurve::rebased).
  bool update_weights(std::span<const double> weights, bool keep_curve = false);
  bool set_weight(const std::string& name, double weight, bool keep_curve = false);
  bool add_source(const std::string& name, std::optional<std::uint64_t> length, std::optional<double> weight,
                  std::optional<std::uint64_t> max_passes = std::nullopt, double per_draw = 1.0);
  bool remove_source(const std::string& name);
  bool set_config(MixtureConfig config);

  /// All of another configuration at once, as one event: mixture and sources of `next`, in which the sources known so
  /// far come first. `rests`: sources of known length whose pass under way has that many batches left. States are
  /// compared with `declared` from now on, whose sources are among those of `next`, in any order.
  bool edit(MixtureSpec next, std::vector<RestLength> rests, MixtureSpec declared);

  /// The pass in which `source` stands at the cursor ended after `num_batches` batches, or continues beyond its length.
  void end_pass(std::int32_t source, std::uint64_t num_batches);
  void extend_pass(std::int32_t source, std::uint64_t num_batches);

  /// The state at `step` of the cursor's epoch, at most the cursor's; without what happened later.
  [[nodiscard]] ScheduleState state(std::uint64_t step);
  /// Throws StateMismatch naming every field that differs, and changes nothing then.
  void load(const ScheduleState& state);
  /// A schedule made from a state alone.
  [[nodiscard]] static Schedule from_state(const ScheduleState& state);
  [[nodiscard]] std::map<std::string, std::uint64_t> fingerprints();

 private:
  /// Counts that are known, so that orders whose counts cost O(steps) need not be counted from the start.
  struct KnownCounts {
    std::shared_ptr<const Segment> segment;
    std::uint64_t step = 0;
    std::vector<std::uint64_t> counts;
  };
  [[nodiscard]] Epoch& open(EpochIndex epoch);
  /// Where an epoch ends; nothing as long as a source of unknown length may change that.
  [[nodiscard]] std::optional<std::uint64_t> find_end(EpochIndex index, Epoch& epoch) const;
  [[nodiscard]] std::vector<std::uint64_t> counts_at(const std::shared_ptr<const Segment>& segment, std::uint64_t step);
  void adopt(const ScheduleState& state);
  void move_to(EpochIndex epoch, std::uint64_t step);
  [[nodiscard]] bool change(MixtureSpec spec, std::vector<RestLength> rests = {});
  [[nodiscard]] bool change_weights(MixtureSpec spec, std::vector<double> weights, bool keep_curve);
  void append(Event event);
  [[nodiscard]] Key epoch_key(EpochIndex epoch) const noexcept;

  std::uint64_t seed_;
  MixtureSpec initial_;
  EpochIndex epoch_;
  std::uint64_t step_ = 0;
  EpochIndex earliest_;  // the first epoch that can still be computed
  std::map<EpochIndex, Epoch> epochs_;
  KnownCounts known_;
  KnownCounts ahead_;         // behind the draws last handed out, where the next ones usually begin
  std::vector<Draw> buffer_;  // draws from the cursor on, for next(); empty when the cursor jumped
  std::size_t num_taken_ = 0;
};

}  // namespace mtf
