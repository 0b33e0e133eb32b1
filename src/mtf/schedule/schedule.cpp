#include "mtf/schedule/schedule.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/state/differences.hpp"

namespace mtf {

namespace {

constexpr std::size_t kSmallestBlock = 256;                    // draws that next() computes at once, at least
constexpr std::size_t kLargestBlock = 4096;                    // at most: with many sources a block costs O(sources)
constexpr std::size_t kMaxEpochs = 16;                         // epochs kept for random access
constexpr std::uint64_t kCountAhead = std::uint64_t{1} << 16;  // steps that are counted on from known counts

std::string position(EpochIndex epoch, std::uint64_t step) {
  return format_message("step {} of epoch {}", step, epoch.value);
}

/// Adds the number of times that each source occurs. Runs of one source would wait for each other's sums, so that
/// neighbours count in tables of their own where there are few sources.
void count_sources(std::span<const std::int32_t> sources, std::span<std::uint64_t> counts) noexcept {
  constexpr std::size_t kFew = 64, kTables = 4;
  std::size_t t = 0;
  if (counts.size() <= kFew) {
    std::array<std::array<std::uint32_t, kFew>, kTables> tables{};
    for (; t + kTables <= sources.size(); t += kTables) {
      for (std::size_t lane = 0; lane < kTables; ++lane) {
        ++tables[lane][static_cast<std::size_t>(sources[t + lane])];
      }
    }
    for (std::size_t i = 0; i < counts.size(); ++i) {
      for (const auto& table : tables) {
        counts[i] += table[i];
      }
    }
  }
  for (; t < sources.size(); ++t) {
    ++counts[static_cast<std::size_t>(sources[t])];
  }
}

Breakpoint first_opening(const MixtureSpec& spec) {
  Breakpoint breakpoint;
  breakpoint.spec = std::make_shared<const MixtureSpec>(spec);
  breakpoint.sources.resize(spec.sources.size());
  return breakpoint;
}

}  // namespace

Schedule::Schedule(MixtureSpec spec, std::uint64_t seed) : seed_(seed), initial_(std::move(spec)) {
  validate(initial_);
  epochs_.emplace(EpochIndex{}, Epoch(epoch_key({}), 0, first_opening(initial_)));
}

Key Schedule::epoch_key(EpochIndex epoch) const noexcept {
  return fold_in(fold_in(Key{seed_}, "schedule"), epoch.value);
}

const MixtureSpec& Schedule::spec() { return *open(epoch_).segment_at(step_)->breakpoint().spec; }

Epoch& Schedule::open(EpochIndex epoch) {
  if (epoch < earliest_) {
    throw ConfigError(
        format_message("epoch {} is out of reach: a state holds its own epoch only, and this schedule was edited in or "
                       "loaded at epoch {}",
                       epoch.value, earliest_.value));
  }
  auto nearest = std::prev(epochs_.upper_bound(epoch));
  while (nearest->first < epoch) {
    Epoch& last = nearest->second;
    const std::optional<std::uint64_t> end = find_end(nearest->first, last);
    if (!end) {
      throw ConfigError(
          format_message("epoch {} is not known yet: how many steps epoch {} has shows when its sources end",
                         epoch.value, nearest->first.value));
    }
    Breakpoint opening = last.next_opening(*end, counts_at(last.segment_at(*end), *end));
    const EpochIndex next = nearest->first.next();
    const std::uint64_t first_step = add_steps(last.first_step(), *end);
    if (first_step == kUnbounded) {
      throw ConfigError(format_message("epoch {} lies beyond 2^62 steps", next.value));
    }
    nearest = epochs_.emplace(next, Epoch(epoch_key(next), first_step, std::move(opening))).first;
    for (auto old = epochs_.begin(); old != epochs_.end() && epochs_.size() > kMaxEpochs;) {
      const bool is_needed = old->first == earliest_ || old->first == epoch_ || old->first == next;
      old = is_needed ? std::next(old) : epochs_.erase(old);
    }
  }
  return nearest->second;
}

bool Schedule::approach(EpochIndex epoch, std::uint64_t num_epochs) {
  if (epoch < earliest_) {
    return true;  // asked for it, the schedule says why it can't be had
  }
  const std::uint64_t nearest = std::prev(epochs_.upper_bound(epoch))->first.value;
  if (epoch.value - nearest <= num_epochs) {
    return true;
  }
  (void)open({nearest + num_epochs});
  return false;
}

std::vector<std::uint64_t> Schedule::counts_at(const std::shared_ptr<const Segment>& segment, std::uint64_t step) {
  std::vector<std::uint64_t> counts(segment->breakpoint().sources.size());
  const std::uint64_t reach = segment->is_counted() ? kCountAhead : 4 * counts.size();
  for (const KnownCounts* known : {&ahead_, &known_}) {
    if (known->segment != segment || known->step > step || step - known->step > reach) {
      continue;
    }
    std::vector<std::int32_t> sources(step - known->step);
    segment->fill(known->step, sources);
    counts = known->counts;
    for (const std::int32_t source : sources) {
      ++counts[static_cast<std::size_t>(source)];
    }
    return counts;
  }
  segment->counts(step, counts);
  return counts;
}

bool Schedule::epoch_done() { return open(epoch_).ends_by(step_); }

std::optional<std::uint64_t> Schedule::find_end(EpochIndex index, Epoch& epoch) const {
  const std::uint64_t end = epoch.num_steps();
  const bool is_past = index < epoch_ || (index == epoch_ && step_ >= end);
  const bool is_known = end != kUnbounded && (is_past || !epoch.may_end_early());
  return is_known ? std::optional(end) : std::nullopt;
}

std::optional<std::uint64_t> Schedule::num_steps(EpochIndex epoch) { return find_end(epoch, open(epoch)); }

std::uint64_t Schedule::first_step(EpochIndex epoch) { return open(epoch).first_step(); }

Draw Schedule::at(std::uint64_t step, EpochIndex epoch) {
  const std::shared_ptr<const Segment> segment = open(epoch).segment_at(step);
  if (step >= segment->end()) {
    throw ConfigError(format_message("step must be in [0, {}) in epoch {}, got {}", segment->end(), epoch.value, step));
  }
  return segment->at(step);
}

std::vector<std::uint64_t> Schedule::counts(std::uint64_t step, EpochIndex epoch) {
  const std::shared_ptr<const Segment> segment = open(epoch).segment_at(step);
  if (step > segment->end()) {
    throw ConfigError(format_message("step must be in [0, {}] in epoch {}, got {}", segment->end(), epoch.value, step));
  }
  std::vector<std::uint64_t> counts = counts_at(segment, step);
  counts.resize(std::max(counts.size(), spec().sources.size()));
  return counts;
}

std::vector<double> Schedule::expected_counts(std::uint64_t step, EpochIndex epoch) {
  std::vector<double> expected(open(epoch).segment_at(step)->breakpoint().sources.size());
  const std::uint64_t known_from = open(epoch).known_from();
  if (known_from > 0) {
    const std::vector<std::uint64_t> drawn = counts(known_from, epoch);
    std::copy_n(drawn.begin(), expected.size(), expected.begin());
  }
  std::vector<std::uint64_t> before;
  std::vector<std::uint64_t> after;
  for (const Epoch::SegmentRange& range : open(epoch).ranges(known_from, step)) {
    const Segment& segment = *range.segment;
    if (const std::span<const double> shares = segment.shares(); !shares.empty()) {
      for (std::size_t i = 0; i < shares.size(); ++i) {
        expected[i] += shares[i] * static_cast<double>(range.end - range.begin);
      }
      continue;
    }
    before.resize(segment.breakpoint().sources.size());
    after.resize(before.size());
    segment.counts(range.begin, before);
    segment.counts(range.end, after);
    for (std::size_t i = 0; i < before.size(); ++i) {
      expected[i] += static_cast<double>(after[i] - before[i]);
    }
  }
  return expected;
}

std::vector<Epoch::SegmentRange> Schedule::ranges(EpochIndex epoch, std::uint64_t begin, std::uint64_t end) {
  return open(epoch).ranges(begin, end);
}

void Schedule::fill(std::span<const Epoch::SegmentRange> ranges, std::span<std::int32_t> sources) {
  for (const Epoch::SegmentRange& range : ranges) {
    range.segment->fill(range.begin, sources.first(range.end - range.begin));
    sources = sources.subspan(range.end - range.begin);
  }
}

std::uint64_t Schedule::known_from(EpochIndex epoch) { return open(epoch).known_from(); }

std::optional<std::uint64_t> Schedule::step_of(std::size_t source, PassPosition draw, std::uint64_t end,
                                               EpochIndex epoch) {
  const std::uint64_t step = open(epoch).step_of(source, draw, std::min(end, kMaxSteps));
  return step == kUnbounded ? std::nullopt : std::optional(step);
}

std::vector<PassPosition> Schedule::positions(std::uint64_t step, EpochIndex epoch) {
  const std::vector<std::uint64_t> drawn = counts(step, epoch);
  const std::shared_ptr<const Segment> segment = open(epoch).segment_at(step);
  std::vector<PassPosition> places(drawn.size());
  for (std::size_t i = 0; i < segment->breakpoint().sources.size(); ++i) {
    places[i] = segment->pass_position(i, drawn[i]);
  }
  return places;
}

std::vector<PassPosition> Schedule::opening_positions(EpochIndex epoch) {
  std::vector<PassPosition> places;
  for (const SourceState& source : open(epoch).opening().sources) {
    places.push_back(source.position);
  }
  return places;
}

std::size_t Schedule::draws(std::span<std::int32_t> sources, std::span<std::int64_t> passes,
                            std::span<std::int64_t> batches) {
  Epoch& epoch = open(epoch_);
  std::size_t done = 0;
  std::vector<std::uint64_t> counts;
  for (const Epoch::SegmentRange& range : epoch.ranges(step_, add_steps(step_, sources.size()))) {
    if (done == 0) {
      counts = counts_at(range.segment, step_);
      known_ = {range.segment, step_, counts};
    }
    counts.resize(range.segment->breakpoint().sources.size());
    const std::size_t num = range.end - range.begin;
    range.segment->fill(range.begin, sources.subspan(done, num), passes.subspan(done, num), batches.subspan(done, num),
                        counts);
    done += num;
    ahead_ = {range.segment, range.end, counts};
  }
  return done;
}

std::vector<Schedule::SegmentDraws> Schedule::source_draws(std::span<std::int32_t> sources) {
  std::vector<SegmentDraws> found;
  std::vector<std::uint64_t> counts;
  for (const Epoch::SegmentRange& range : open(epoch_).ranges(step_, add_steps(step_, sources.size()))) {
    if (found.empty()) {
      counts = counts_at(range.segment, step_);
      known_ = {range.segment, step_, counts};
    }
    counts.resize(range.segment->breakpoint().sources.size());
    found.push_back({range.segment, range.end - range.begin, counts, {}});
    SegmentDraws& draws = found.back();
    range.segment->fill(range.begin, sources.first(draws.size));
    count_sources(sources.first(draws.size), counts);
    draws.after = counts;
    sources = sources.subspan(draws.size);
    ahead_ = {range.segment, range.end, counts};
  }
  return found;
}

std::optional<Draw> Schedule::next() {
  if (num_taken_ == buffer_.size()) {
    const std::size_t block = std::clamp(4 * spec().sources.size(), kSmallestBlock, kLargestBlock);
    std::vector<std::int32_t> sources(block);
    std::vector<std::int64_t> passes(block);
    std::vector<std::int64_t> batches(block);
    const std::size_t num = draws(sources, passes, batches);
    buffer_.resize(num);
    num_taken_ = 0;
    if (num == 0) {
      return std::nullopt;
    }
    for (std::size_t t = 0; t < num; ++t) {
      buffer_[t] = {step_ + t, sources[t], static_cast<std::uint64_t>(passes[t]),
                    static_cast<std::uint64_t>(batches[t])};
    }
  }
  ++step_;
  return buffer_[num_taken_++];
}

void Schedule::move_to(EpochIndex epoch, std::uint64_t step) {
  epoch_ = epoch;
  step_ = step;
  buffer_.clear();
  num_taken_ = 0;
}

void Schedule::advance(std::uint64_t num_steps) {
  const std::uint64_t target = add_steps(step_, num_steps);
  const std::uint64_t end = open(epoch_).segment_at(std::min(target, kMaxSteps))->end();
  if (end < target) {
    throw ConfigError(format_message("cannot advance by {} from {}: the epoch ends at step {}", num_steps,
                                     position(epoch_, step_), end));
  }
  move_to(epoch_, target);
}

void Schedule::next_epoch() {
  if (!epoch_done()) {
    throw ConfigError(
        format_message("the next epoch opens when this one is done; the cursor is at {}", position(epoch_, step_)));
  }
  (void)open(epoch_.next());
  move_to(epoch_.next(), 0);
}

void Schedule::seek(EpochIndex epoch, std::uint64_t step) {
  const std::uint64_t end = open(epoch).segment_at(step)->end();
  if (step > end) {
    throw ConfigError(format_message("step must be in [0, {}] in epoch {}, got {}", end, epoch.value, step));
  }
  move_to(epoch, step);
}

ScheduleState Schedule::state(std::uint64_t step) {
  if (step > step_) {
    throw ConfigError(
        format_message("a state can be taken up to the cursor ({}), got step {}", position(epoch_, step_), step));
  }
  Epoch& epoch = open(epoch_);
  ScheduleState state;
  state.seed = seed_;
  state.initial = initial_;
  state.epoch = epoch_.value;
  state.first_step = epoch.first_step();
  state.opening = epoch.opening();
  state.log = epoch.opening().carries ? epoch.log().summary_until(step, kMaxLoggedCost) : epoch.log().until(step);
  state.resume_point = epoch.resume_point_at(step);
  state.step = step;
  state.counts = counts_at(epoch.segment_at(step), step);
  return state;
}

void Schedule::adopt(const ScheduleState& state) {
  Epoch epoch(fold_in(fold_in(Key{state.seed}, "schedule"), state.epoch), state.first_step, state.opening, state.log,
              state.resume_point);
  std::shared_ptr<const Segment> segment = epoch.segment_at(state.step);
  if (segment->end() != state.resume_point.end && !segment->is_counted()) {
    throw StateMismatch("state.tail_end: its schedule ends at another step than the state says");
  }
  std::vector<std::uint64_t> counts(state.counts.size());
  if (!segment->is_counted()) {
    segment->counts(state.step, counts);
    if (counts != state.counts) {
      throw StateMismatch("state.counts: its schedule drew other counts than the state says");
    }
  }
  segment->remember(state.step, state.counts);
  // Nothing below throws.
  initial_ = state.initial;
  earliest_ = {state.epoch};
  epochs_.clear();
  epochs_.emplace(EpochIndex{state.epoch}, std::move(epoch));
  move_to({state.epoch}, state.step);
  known_ = {std::move(segment), state.step, state.counts};
}

void Schedule::load(const ScheduleState& state) {
  const std::vector<std::string> differences = find_differences(seed_, initial_, state);
  if (!differences.empty()) {
    std::string message = "the state belongs to another schedule:";
    for (const std::string& difference : differences) {
      message += "\n  " + difference;
    }
    throw StateMismatch(message);
  }
  adopt(state);
}

Schedule Schedule::from_state(const ScheduleState& state) {
  Schedule schedule(state.initial, state.seed);
  schedule.adopt(state);
  return schedule;
}

std::map<std::string, std::uint64_t> Schedule::fingerprints() { return find_fingerprints(state(step_)); }

}  // namespace mtf
