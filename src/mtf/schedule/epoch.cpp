#include "mtf/schedule/epoch.hpp"

#include <algorithm>
#include <cassert>

#include "mtf/schedule/epoch_length.hpp"

namespace mtf {

bool operator==(const Event& a, const Event& b) {
  const bool same_spec = a.spec == b.spec || (a.spec && b.spec && *a.spec == *b.spec);
  return same_spec && a.step == b.step && a.kind == b.kind && a.source == b.source && a.num_batches == b.num_batches;
}

Epoch::Epoch(Key key, std::uint64_t first_step, Breakpoint opening, std::vector<Event> events,
             std::optional<ResumePoint> resume_point)
    : key_(key), first_step_(first_step), opening_(std::move(opening)), events_(std::move(events)) {
  if (resume_point) {
    push(std::move(resume_point->breakpoint), resume_point->num_events, resume_point->end);
  } else {
    push(opening_, 0);
  }
}

void Epoch::push(Breakpoint breakpoint, std::size_t num_events, std::optional<std::uint64_t> known_end) {
  // A segment without steps is replaced; the log keeps what made it.
  if (!entries_.empty() && entries_.back().segment->start() == breakpoint.step) {
    entries_.pop_back();
  }
  entries_.push_back(
      {std::make_shared<const Segment>(std::move(breakpoint), key_, first_step_, known_end), num_events});
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
  const bool has_event = last.num_events < events_.size() && events_[last.num_events].step <= segment.change();
  const std::uint64_t next = has_event ? events_[last.num_events].step : segment.change();
  if (next > segment.end() || (next == segment.end() && !has_event)) {
    complete_ = true;
    return false;
  }
  std::vector<std::uint64_t> counts(segment.breakpoint().sources.size());
  segment.counts(next, counts);
  if (has_event) {
    push(apply(events_[last.num_events], segment, counts), last.num_events + 1);
  } else {
    push(segment.fresh_breakpoint(next, counts), last.num_events);
  }
  return true;
}

void Epoch::grow_to(std::uint64_t step) {
  const auto is_open = [&] {
    const SegmentEntry& last = entries_.back();
    const std::uint64_t next_event = last.num_events < events_.size() ? events_[last.num_events].step : kUnbounded;
    return std::min(last.segment->change(), next_event) <= step;
  };
  while (is_open() && grow()) {
  }
}

std::uint64_t Epoch::num_steps() {
  while (true) {
    const SegmentEntry& last = entries_.back();
    // With a fixed number of steps no change of the weights moves the end: no need to compute them all.
    const MixtureConfig& config = last.segment->breakpoint().spec->config;
    const bool is_fixed = config.policy == EpochPolicy::fixed_num_steps && config.cycle;
    if (is_fixed && last.num_events == events_.size()) {
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

bool Epoch::ends_by(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return false;
  }
  grow_to(step);
  return entries_.back().segment->end() <= step;
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
  if (!history_) {
    const auto end = events_.begin() + static_cast<std::ptrdiff_t>(entries_.front().num_events);
    history_ = std::make_shared<Epoch>(key_, first_step_, opening_, std::vector<Event>(events_.begin(), end));
  }
  return *history_;
}

std::shared_ptr<const Segment> Epoch::segment_at(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return history().segment_at(step);
  }
  return entries_[find_entry(step)].segment;
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
    Epoch rewound(key_, first_step_, opening_, events_until(step));
    *this = std::move(rewound);
  }
  const std::size_t entry = find_entry(step);
  entries_.resize(entry + 1);
  events_ = events_until(step);
  events_.push_back(event);
  push(apply(event, *entries_[entry].segment, counts), events_.size());
}

std::vector<Event> Epoch::events_until(std::uint64_t step) const {
  const auto end = std::ranges::upper_bound(events_, step, {}, &Event::step);
  return {events_.begin(), end};
}

Epoch::ResumePoint Epoch::resume_point_at(std::uint64_t step) {
  if (step < entries_.front().segment->start()) {
    return history().resume_point_at(step);
  }
  const SegmentEntry& entry = entries_[find_entry(step)];
  return {entry.segment->breakpoint(), entry.segment->end(), entry.num_events};
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
  return breakpoint;
}

}  // namespace mtf
