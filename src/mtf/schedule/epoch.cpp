#include "mtf/schedule/epoch.hpp"

#include <algorithm>
#include <cassert>

#include "mtf/schedule/epoch_length.hpp"

namespace mtf {

bool operator==(const Event& a, const Event& b) {
  const bool same_setup = a.setup == b.setup || (a.setup && b.setup && *a.setup == *b.setup);
  return same_setup && a.step == b.step && a.kind == b.kind && a.source == b.source && a.num_batches == b.num_batches;
}

Epoch::Epoch(Key key, std::uint64_t first_step, Knot opening, std::vector<Event> events, std::optional<Tail> tail)
    : key_(key), first_step_(first_step), opening_(std::move(opening)), events_(std::move(events)) {
  if (tail) {
    push(std::move(tail->knot), tail->num_events, tail->end);
  } else {
    push(opening_, 0);
  }
}

void Epoch::push(Knot knot, std::size_t num_events, std::optional<std::uint64_t> known_end) {
  // A segment without steps is replaced; the log keeps what made it.
  if (!links_.empty() && links_.back().segment->start() == knot.step) links_.pop_back();
  links_.push_back({std::make_shared<const Segment>(std::move(knot), key_, first_step_, known_end), num_events});
}

Knot Epoch::apply(const Event& event, const Segment& segment, std::span<const std::uint64_t> counts) {
  const Knot& before = segment.knot();
  const MixtureConfig& config = before.setup->config;
  if (event.kind == Event::Kind::edit) {
    Knot knot = segment.fresh_knot(event.step, counts);
    const std::size_t num_before = knot.sources.size();
    knot.sources.resize(event.setup->sources.size());
    for (std::size_t i = 0; i < num_before; ++i) {
      SourceState& state = knot.sources[i];
      if (event.setup->sources[i].present && !before.setup->sources[i].present) {
        // A source that comes back opens its next pass.
        if (state.place.batch > 0) state.place = {state.place.pass + 1, 0};
        state.spent = false;
      }
    }
    knot.setup = event.setup;
    knot.ended = false;
    return knot;
  }
  const auto source = static_cast<std::size_t>(event.source);
  // Orders that go on from where they are keep their pattern, so that an end found at run time changes nothing else.
  // SEQUENTIAL knows its position without it; the weighted orders renormalise when a source leaves.
  const bool restarts =
      event.kind == Event::Kind::end_pass &&
      (config.strategy == Strategy::sequential || (config.drops_out() && config.strategy == Strategy::weighted));
  Knot knot = restarts ? segment.fresh_knot(event.step, counts) : segment.continued_knot(event.step, counts);
  if (event.kind == Event::Kind::extend_pass) {
    if (config.strategy == Strategy::sequential) knot = segment.fresh_knot(event.step, counts);
    return knot;
  }
  SourceState& state = knot.sources[source];
  if (config.policy == EpochPolicy::min_length) {
    state.spent = true;
    knot.ended = true;
  } else if (config.drops_out()) {
    state.spent = true;
    state.limit = state.count - state.origin_count;
  } else {
    // The source was asked for the first batch of a round: it is this round's block that has ended.
    if (config.strategy == Strategy::sequential) begin_round_if_due(knot, segment.active());
    state.place = {state.place.pass + 1, 0};
    if (before.setup->sources[source].length == kEndless) state.round_count = kEndless;
  }
  return knot;
}

std::uint64_t Epoch::link_end(std::size_t link) const noexcept {
  return link + 1 < links_.size() ? links_[link + 1].segment->start() : links_[link].segment->end();
}

bool Epoch::grow() {
  if (complete_) return false;
  const Link last = links_.back();
  const Segment& segment = *last.segment;
  const bool has_event = last.num_events < events_.size() && events_[last.num_events].step <= segment.change();
  const std::uint64_t next = has_event ? events_[last.num_events].step : segment.change();
  if (next > segment.end() || (next == segment.end() && !has_event)) {
    complete_ = true;
    return false;
  }
  std::vector<std::uint64_t> counts(segment.knot().sources.size());
  segment.counts(next, counts);
  if (has_event) {
    push(apply(events_[last.num_events], segment, counts), last.num_events + 1);
  } else {
    push(segment.fresh_knot(next, counts), last.num_events);
  }
  return true;
}

void Epoch::grow_to(std::uint64_t step) {
  const auto is_open = [&] {
    const Link& last = links_.back();
    const std::uint64_t next_event = last.num_events < events_.size() ? events_[last.num_events].step : kEndless;
    return std::min(last.segment->change(), next_event) <= step;
  };
  while (is_open() && grow()) {
  }
}

std::uint64_t Epoch::num_steps() {
  while (true) {
    const Link& last = links_.back();
    // With a fixed number of steps no change of the weights moves the end: no need to compute them all.
    const MixtureConfig& config = last.segment->knot().setup->config;
    const bool is_fixed = config.policy == EpochPolicy::fixed_num_steps && config.cycle;
    if (is_fixed && last.num_events == events_.size()) return last.segment->end();
    if (!grow()) return last.segment->end();
  }
}

bool Epoch::may_end_early() {
  (void)num_steps();
  return links_.back().segment->may_end_early();
}

bool Epoch::ends_by(std::uint64_t step) {
  if (step < links_.front().segment->start()) return false;
  grow_to(step);
  return links_.back().segment->end() <= step;
}

std::size_t Epoch::find_link(std::uint64_t step) {
  grow_to(step);
  const auto after = std::upper_bound(links_.begin(), links_.end(), step, [](std::uint64_t value, const Link& link) {
    return value < link.segment->start();
  });
  assert(after != links_.begin());
  return static_cast<std::size_t>(after - links_.begin()) - 1;
}

Epoch& Epoch::history() {
  if (!history_) {
    const auto end = events_.begin() + static_cast<std::ptrdiff_t>(links_.front().num_events);
    history_ = std::make_shared<Epoch>(key_, first_step_, opening_, std::vector<Event>(events_.begin(), end));
  }
  return *history_;
}

std::shared_ptr<const Segment> Epoch::segment_at(std::uint64_t step) {
  if (step < links_.front().segment->start()) return history().segment_at(step);
  return links_[find_link(step)].segment;
}

std::vector<Epoch::Piece> Epoch::pieces(std::uint64_t begin, std::uint64_t end) {
  std::vector<Piece> pieces;
  const std::uint64_t known_from = links_.front().segment->start();
  if (begin < known_from) {
    pieces = history().pieces(begin, std::min(end, known_from));
    begin = known_from;
  }
  if (begin >= end) return pieces;
  grow_to(end);
  for (std::size_t link = find_link(begin); link < links_.size() && begin < end; ++link) {
    const std::uint64_t piece_end = std::min(end, link_end(link));
    if (piece_end > begin) pieces.push_back({links_[link].segment, begin, piece_end});
    begin = std::max(begin, piece_end);
  }
  return pieces;
}

void Epoch::append(const Event& event, std::span<const std::uint64_t> counts) {
  const std::uint64_t step = event.step;
  complete_ = false;
  if (step < links_.front().segment->start()) {
    Epoch rewound(key_, first_step_, opening_, events_until(step));
    *this = std::move(rewound);
  }
  const std::size_t link = find_link(step);
  links_.resize(link + 1);
  events_ = events_until(step);
  events_.push_back(event);
  push(apply(event, *links_[link].segment, counts), events_.size());
}

std::vector<Event> Epoch::events_until(std::uint64_t step) const {
  const auto end = std::ranges::upper_bound(events_, step, {}, &Event::step);
  return {events_.begin(), end};
}

Epoch::Tail Epoch::tail_at(std::uint64_t step) {
  if (step < links_.front().segment->start()) return history().tail_at(step);
  const Link& link = links_[find_link(step)];
  return {link.segment->knot(), link.segment->end(), link.num_events};
}

Knot Epoch::next_opening(std::uint64_t step, std::span<const std::uint64_t> counts) {
  Knot knot = segment_at(step)->fresh_knot(step, counts);
  const Setup& setup = *knot.setup;
  for (std::size_t i = 0; i < knot.sources.size(); ++i) {
    const SourceState state = knot.sources[i];
    const bool is_done = state.spent || state.place.batch == setup.sources[i].length;
    const bool opens_next = setup.config.continues() ? is_done : state.place.batch > 0;
    knot.sources[i] = {};
    knot.sources[i].place = opens_next ? Place{state.place.pass + 1, 0} : state.place;
  }
  knot.step = 0;
  knot.origin = 0;
  knot.ended = false;
  return knot;
}

}  // namespace mtf
