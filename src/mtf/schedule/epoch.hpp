/// One epoch: what was known at its first step, the log of what happened in it, and the segments that follow from both.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/schedule/event_log.hpp"
#include "mtf/schedule/segment.hpp"

namespace mtf {

/// Segments are computed when they are asked for. Not safe for concurrent calls; the segments are.
class Epoch {
 public:
  /// The segment in force at a step that was saved, so that nothing before it has to be computed.
  struct ResumePoint {
    Breakpoint breakpoint;
    std::uint64_t end = kUnbounded;
    std::uint64_t num_events = 0;       // events that led to it
    std::uint64_t change = kUnbounded;  // of a mixture with largest numbers of passes: see Segment::change
  };
  /// Steps [begin, end) of a segment.
  struct SegmentRange {
    std::shared_ptr<const Segment> segment;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  /// `key`: of the epoch. `first_step`: batches drawn in training before the epoch.
  Epoch(Key key, std::uint64_t first_step, Breakpoint opening, EventLog log = {},
        std::optional<ResumePoint> resume_point = std::nullopt);

  [[nodiscard]] const Breakpoint& opening() const noexcept { return opening_; }
  [[nodiscard]] std::uint64_t first_step() const noexcept { return first_step_; }
  [[nodiscard]] const EventLog& log() const noexcept { return log_; }
  /// The first step whose draw is known. Above 0 where the oldest events are missing, since what came before the first
  /// segment that is known can't be computed then.
  [[nodiscard]] std::uint64_t known_from() const noexcept {
    return log_.is_whole() ? 0 : entries_.front().segment->start();
  }

  /// Number of steps; kUnbounded if it can't be known yet.
  [[nodiscard]] std::uint64_t num_steps();
  /// Whether a source of unknown length can still make that number smaller.
  [[nodiscard]] bool may_end_early();
  /// Whether the epoch ends at `step` or before.
  [[nodiscard]] bool ends_by(std::uint64_t step) { return end_by(step).has_value(); }
  /// Where the epoch ends, if that is at `step` or before. Computes no segment behind `step`.
  [[nodiscard]] std::optional<std::uint64_t> end_by(std::uint64_t step);
  /// The segment that decides the draw at `step`, or that `step` ends.
  [[nodiscard]] std::shared_ptr<const Segment> segment_at(std::uint64_t step);
  /// The step below `end` that draws batch `draw.batch` of pass `draw.pass` of a source; kUnbounded if there is none.
  /// Throws: ConfigError if it lies before the first step that is known.
  [[nodiscard]] std::uint64_t step_of(std::size_t source, PassPosition draw, std::uint64_t end);
  /// The segments of [begin, end), cut where the epoch ends.
  [[nodiscard]] std::vector<SegmentRange> ranges(std::uint64_t begin, std::uint64_t end);

  /// The epoch as it would be without the events behind `step`, with `event` at `step` = event.step.
  /// `counts`: draws of each source in [0, step).
  void append(const Event& event, std::span<const std::uint64_t> counts);
  /// The log up to and including `step`, and the segment in force there.
  [[nodiscard]] ResumePoint resume_point_at(std::uint64_t step);

  /// What the next epoch begins with, given the draws of each source in this one, which ends at `step`.
  [[nodiscard]] Breakpoint next_opening(std::uint64_t step, std::span<const std::uint64_t> counts);

 private:
  struct SegmentEntry {
    std::shared_ptr<const Segment> segment;
    std::uint64_t num_events = 0;
  };
  [[nodiscard]] static Breakpoint apply(const Event& event, const Segment& segment,
                                        std::span<const std::uint64_t> counts);
  /// Computes one more segment; false when the last one ends the epoch.
  bool grow();
  void forget_oldest();
  void grow_to(std::uint64_t step);
  [[nodiscard]] std::uint64_t entry_end(std::size_t entry) const noexcept;
  [[nodiscard]] std::size_t find_entry(std::uint64_t step);
  [[nodiscard]] Epoch& history();
  void push(Breakpoint breakpoint, std::uint64_t num_events, std::optional<Segment::KnownSteps> known = std::nullopt);

  Key key_;
  std::uint64_t first_step_;
  Breakpoint opening_;
  EventLog log_;
  std::vector<SegmentEntry> entries_;  // from the resume_point on, in order of their starts
  bool complete_ = false;
  std::shared_ptr<Epoch> history_;  // what came before the resume_point, once somebody asked for it
};

}  // namespace mtf
