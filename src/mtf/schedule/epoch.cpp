#include "mtf/schedule/epoch.hpp"

#include <algorithm>
#include <cassert>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/epoch_length.hpp"

namespace mtf {

namespace {

// Events of an epoch that are kept for a look back, at least and at most: each has a segment of its own.
constexpr std::uint64_t kLeastKept = 1024;
constexpr std::uint64_t kMostKept = 2 * kLeastKept;

/// A deficit counts turns, which have another length from here on.
void rescale_deficits(Breakpoint& breakpoint, std::int64_t old_burst, std::int64_t new_burst) {
  for (SourceState& state : breakpoint.sources) {
    const __int128 deficit = static_cast<__int128>(state.deficit) * old_burst / new_burst;
    state.deficit = static_cast<std::int64_t>(std::clamp<__int128>(deficit, -kMaxDeficit, kMaxDeficit));
  }
}

}  // namespace

Epoch::Epoch(Key key, std::uint64_t first_step, Breakpoint opening, EventLog log,
             std::optional<ResumePoint> resume_point)
    : key_(key), first_step_(first_step), opening_(std::move(opening)), log_(std::move(log)) {
  if (resume_point) {
    push(std::move(resume_point->breakpoint), resume_point->num_events,
         Segment::KnownSteps{.end = resume_point->end, .change = resume_point->change});
  } else {
    push(opening_, 0);
  }
}

void Epoch::push(Breakpoint breakpoint, std::uint64_t num_events, std::optional<Segment::KnownSteps> known) {
  // A segment without steps is replaced; the log keeps what made it.
  if (!entries_.empty() && entries_.back().segment->start() == breakpoint.step) {
    entries_.pop_back();
  }
  entries_.push_back({std::make_shared<const Segment>(std::move(breakpoint), key_, first_step_, known), num_events});
}

Breakpoint Epoch::apply(const Event& event, const Segment& segment, std::span<const std::uint64_t> counts) {
  const Breakpoint& before = segment.breakpoint();
  const MixtureConfig& config = before.spec->config;
  if (event.kind == EventKind::edit) {
    Breakpoint breakpoint = segment.fresh_breakpoint(event.step, counts);
    const std::size_t num_before = breakpoint.sources.size();
    breakpoint.sources.resize(event.spec->sources.size());
    for (std::size_t i = 0; i < num_before; ++i) {
      SourceState& state = breakpoint.sources[i];
      if (event.spec->sources[i].present && !before.spec->sources[i].present) {
        // A source that comes back opens its next pass.
        if (state.position.batch > 0) {
          state.position = {state.position.pass + 1, 0};
        }
        state.exhausted = false;
      }
    }
    if (event.spec->config.burst != config.burst) {
      rescale_deficits(breakpoint, config.burst, event.spec->config.burst);
    }
    // The pass under way continues with the numbers that leave it what it has left.
    for (const RestLength& rest : event.rests) {
      const auto i = static_cast<std::size_t>(rest.source);
      breakpoint.sources[i].position.batch = event.spec->sources[i].pass_limit() - rest.num_batches;
    }
    breakpoint.spec = event.spec;
    breakpoint.ended = false;
    return breakpoint;
  }
  const auto source = static_cast<std::size_t>(event.source);
  // Orders that go on from where they are keep their pattern, so that an end found at run time changes nothing else.
  // SEQUENTIAL knows its position without it; the weighted orders renormalise when a source leaves.
  const bool restarts =
      event.kind == EventKind::end_pass &&
      (config.strategy == Strategy::sequential || (config.drops_out() && config.strategy == Strategy::weighted));
  Breakpoint breakpoint =
      restarts ? segment.fresh_breakpoint(event.step, counts) : segment.continued_breakpoint(event.step, counts);
  if (event.kind == EventKind::extend_pass) {
    if (config.strategy == Strategy::sequential) {
      breakpoint = segment.fresh_breakpoint(event.step, counts);
    }
    return breakpoint;
  }
  SourceState& state = breakpoint.sources[source];
  if (config.policy == EpochPolicy::min_length) {
    state.exhausted = true;
    breakpoint.ended = true;
  } else if (config.drops_out()) {
    state.exhausted = true;
    state.limit = state.count - state.origin_count;
  } else {
    // The source was asked for the first batch of a round: it is this round's block that has ended.
    if (config.strategy == Strategy::sequential) {
      begin_round_if_due(breakpoint, segment.active());
    }
    state.position = {state.position.pass + 1, 0};
    if (!before.spec->sources[source].length) {
      state.round_count.reset();
    }
  }
  return breakpoint;
}

std::uint64_t Epoch::entry_end(std::size_t entry) const noexcept {
  return entry + 1 < entries_.size() ? entries_[entry + 1].segment->start() : entries_[entry].segment->end();
}

bool Epoch::grow() {
  if (complete_) {
    return false;
  }
  const SegmentEntry last = entries_.back();
  const Segment& segment = *last.segment;
  const bool has_event = last.num_events < log_.size() && log_[last.num_events].step <= segment.change();
  const std::uint64_t next = has_event ? log_[last.num_events].step : segment.change();
  if (next > segment.end() || (next == segment.end() && !has_event)) {
    complete_ = true;
    return false;
  }
  std::vector<std::uint64_t> counts(segment.breakpoint().sources.size());
  segment.counts(next, counts);
  if (has_event) {
    push(apply(log_[last.num_events], segment, counts), last.num_events + 1);
  } else {
    push(segment.fresh_breakpoint(next, counts), last.num_events);
  }
  return true;
}

void Epoch::grow_to(std::uint64_t step) {
  const auto is_open = [&] {
    const SegmentEntry& last = entries_.back();
    const std::uint64_t next_event = last.num_events < log_.size() ? log_[last.num_events].step : kUnbounded;
    return std::min(last.segment->change(), next_event) <= step;
  };
  while (is_open() && grow()) {
  }
}

std::uint64_t Epoch::num_steps() {
  while (true) {
    const SegmentEntry& last = entries_.back();
    // With a fixed number of steps no change of the weights moves the end: no need to compute them all.
    const MixtureSpec& spec = *last.segment->breakpoint().spec;
    const bool is_fixed = spec.config.policy == EpochPolicy::fixed_num_steps && spec.config.cycle && !spec.is_capped();
    if (is_fixed && last.num_events == log_.size()) {
      return last.segment->end();
    }
    if (!grow()) {
      return last.segment->end();
    }
  }
}

bool Epoch::may_end_early() {
  (void)num_steps();
  return entries_.back().segment->may_end_early();
}

std::optional<std::uint64_t> Epoch::end_by(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return std::nullopt;
  }
  grow_to(step);
  const std::uint64_t end = entries_.back().segment->end();
  return end <= step ? std::optional(end) : std::nullopt;
}

std::size_t Epoch::find_entry(std::uint64_t step) {
  grow_to(step);
  const auto after =
      std::upper_bound(entries_.begin(), entries_.end(), step,
                       [](std::uint64_t value, const SegmentEntry& entry) { return value < entry.segment->start(); });
  assert(after != entries_.begin());
  return static_cast<std::size_t>(after - entries_.begin()) - 1;
}

Epoch& Epoch::history() {
  if (!log_.is_whole()) {
    throw ConfigError(format_message(
        "the draws before step {} of this epoch are out of reach: the schedule was edited more often since "
        "then than it or its state keeps",
        known_from()));
  }
  if (!history_) {
    history_ = std::make_shared<Epoch>(key_, first_step_, opening_, log_.first(entries_.front().num_events));
  }
  return *history_;
}

std::shared_ptr<const Segment> Epoch::segment_at(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return history().segment_at(step);
  }
  return entries_[find_entry(step)].segment;
}

std::uint64_t Epoch::step_of(std::size_t source, PassPosition draw, std::uint64_t end) {
  grow_to(end);
  // Where a source stands never falls: the last segment that begins before the draw is the one that may have it.
  const auto begins_before = [&](const SegmentEntry& entry) {
    const std::vector<SourceState>& sources = entry.segment->breakpoint().sources;
    return source >= sources.size() || sources[source].position <= draw;
  };
  const auto after = std::ranges::partition_point(entries_, begins_before);
  if (after == entries_.begin()) {
    return entries_.front().segment->start() == 0 ? kUnbounded : history().step_of(source, draw, end);
  }
  const auto entry = static_cast<std::size_t>(after - entries_.begin()) - 1;
  const Segment& segment = *entries_[entry].segment;
  if (source >= segment.breakpoint().sources.size()) {
    return kUnbounded;
  }
  const std::uint64_t step = segment.step_of(source, draw);
  return step < std::min(end, entry_end(entry)) ? step : kUnbounded;
}

std::vector<Epoch::SegmentRange> Epoch::ranges(std::uint64_t begin, std::uint64_t end) {
  std::vector<SegmentRange> ranges;
  const std::uint64_t known_from = entries_.front().segment->start();
  if (begin < known_from) {
    ranges = history().ranges(begin, std::min(end, known_from));
    begin = known_from;
  }
  if (begin >= end) {
    return ranges;
  }
  grow_to(end);
  for (std::size_t entry = find_entry(begin); entry < entries_.size() && begin < end; ++entry) {
    const std::uint64_t range_end = std::min(end, entry_end(entry));
    if (range_end > begin) {
      ranges.push_back({entries_[entry].segment, begin, range_end});
    }
    begin = std::max(begin, range_end);
  }
  return ranges;
}

void Epoch::append(const Event& event, std::span<const std::uint64_t> counts) {
  const std::uint64_t step = event.step;
  complete_ = false;
  if (step < entries_.front().segment->start()) {
    (void)history();  // throws if what is needed is missing
    Epoch rewound(key_, first_step_, opening_, log_.until(step));
    *this = std::move(rewound);
  }
  const std::size_t entry = find_entry(step);
  entries_.resize(entry + 1);
  log_ = log_.until(step);
  log_.push_back(event);
  push(apply(event, *entries_[entry].segment, counts), log_.size());
  forget_oldest();
}

/// Keeps the memory of an epoch with any number of edits bounded.
void Epoch::forget_oldest() {
  if (!opening_.carries || log_.events().size() <= kMostKept) {
    return;
  }
  log_.drop_all_but(kLeastKept);
  const auto first_kept = std::ranges::lower_bound(entries_, log_.num_dropped(), {}, &SegmentEntry::num_events);
  entries_.erase(entries_.begin(), first_kept);
  history_.reset();
}

Epoch::ResumePoint Epoch::resume_point_at(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return history().resume_point_at(step);
  }
  const SegmentEntry& entry = entries_[find_entry(step)];
  const bool is_capped = entry.segment->breakpoint().spec->is_capped();
  return {entry.segment->breakpoint(), entry.segment->end(), entry.num_events,
          is_capped ? entry.segment->change() : kUnbounded};
}

Breakpoint Epoch::next_opening(std::uint64_t step, std::span<const std::uint64_t> counts) {
  Breakpoint breakpoint = segment_at(step)->fresh_breakpoint(step, counts);
  const MixtureSpec& spec = *breakpoint.spec;
  for (std::size_t i = 0; i < breakpoint.sources.size(); ++i) {
    const SourceState state = breakpoint.sources[i];
    const bool is_done = state.exhausted || state.position.batch == spec.sources[i].length;
    const bool opens_next = spec.config.continues() ? is_done : state.position.batch > 0;
    breakpoint.sources[i] = {};
    breakpoint.sources[i].position = opens_next ? PassPosition{state.position.pass + 1, 0} : state.position;
  }
  breakpoint.step = 0;
  breakpoint.origin = 0;
  breakpoint.ended = false;
  breakpoint.continues = false;
  breakpoint.num_in_block = 0;
  return breakpoint;
}

}  // namespace mtf
