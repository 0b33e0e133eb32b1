#include "mtf/schedule/schedule.hpp"

#include <algorithm>
#include <cmath>

#include "mtf/error.hpp"

namespace mtf {

namespace {

constexpr std::size_t kBlock = 256;                            // draws that next() computes at once, at least
constexpr std::size_t kLargestBlock = 4096;                    // at most: with many sources a block costs O(sources)
constexpr std::size_t kMaxEpochs = 16;                         // epochs kept for random access
constexpr std::uint64_t kCountAhead = std::uint64_t{1} << 16;  // steps that are counted on from known counts

std::string position(std::uint64_t epoch, std::uint64_t step) {
  return "step " + std::to_string(step) + " of epoch " + std::to_string(epoch);
}

/// The setup without what removed sources still weigh, which decides nothing.
Setup without_idle_weights(Setup setup) {
  const auto clear = [&](std::vector<double>& weights) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (!setup.sources[i].present) weights[i] = 0;
    }
  };
  clear(setup.config.weights);
  if (setup.config.curve) {
    for (WeightCurve::Point& point : setup.config.curve->points) clear(point.weights);
  }
  return setup;
}

Knot first_opening(const Setup& setup) {
  Knot knot;
  knot.setup = std::make_shared<const Setup>(setup);
  knot.sources.resize(setup.sources.size());
  return knot;
}

}  // namespace

Schedule::Schedule(Setup setup, std::uint64_t seed) : seed_(seed), initial_(std::move(setup)) {
  validate(initial_);
  epochs_.emplace(0, Epoch(epoch_key(0), 0, first_opening(initial_)));
}

Key Schedule::epoch_key(std::uint64_t epoch) const noexcept { return fold_in(fold_in(Key{seed_}, "schedule"), epoch); }

const Setup& Schedule::setup() { return *open(epoch_).segment_at(step_)->knot().setup; }

Epoch& Schedule::open(std::uint64_t epoch) {
  if (epoch < earliest_) {
    throw ConfigError("epoch " + std::to_string(epoch) +
                      " is out of reach: a state holds its own epoch only, and this " +
                      "schedule was edited in or loaded at epoch " + std::to_string(earliest_));
  }
  auto nearest = std::prev(epochs_.upper_bound(epoch));
  while (nearest->first < epoch) {
    Epoch& last = nearest->second;
    const std::uint64_t end = find_end(nearest->first, last);
    if (end == kEndless) {
      throw ConfigError("epoch " + std::to_string(epoch) + " is not known yet: how many steps epoch " +
                        std::to_string(nearest->first) + " has shows when its sources end");
    }
    Knot opening = last.next_opening(end, counts_at(last.segment_at(end), end));
    const std::uint64_t next = nearest->first + 1;
    const std::uint64_t first_step = add_steps(last.first_step(), end);
    if (first_step == kEndless) throw ConfigError("epoch " + std::to_string(next) + " lies beyond 2^62 steps");
    nearest = epochs_.emplace(next, Epoch(epoch_key(next), first_step, std::move(opening))).first;
    for (auto old = epochs_.begin(); old != epochs_.end() && epochs_.size() > kMaxEpochs;) {
      const bool is_needed = old->first == earliest_ || old->first == epoch_ || old->first == next;
      old = is_needed ? std::next(old) : epochs_.erase(old);
    }
  }
  return nearest->second;
}

bool Schedule::approach(std::uint64_t epoch, std::uint64_t num_epochs) {
  if (epoch < earliest_) return true;  // asked for it, the schedule says why it can't be had
  const std::uint64_t nearest = std::prev(epochs_.upper_bound(epoch))->first;
  if (epoch - nearest <= num_epochs) return true;
  (void)open(nearest + num_epochs);
  return false;
}

std::vector<std::uint64_t> Schedule::counts_at(const std::shared_ptr<const Segment>& segment, std::uint64_t step) {
  std::vector<std::uint64_t> counts(segment->knot().sources.size());
  const std::uint64_t reach = segment->is_counted() ? kCountAhead : 4 * counts.size();
  for (const KnownCounts* known : {&ahead_, &known_}) {
    if (known->segment != segment || known->step > step || step - known->step > reach) continue;
    std::vector<std::int32_t> sources(step - known->step);
    segment->fill(known->step, sources);
    counts = known->counts;
    for (const std::int32_t source : sources) ++counts[static_cast<std::size_t>(source)];
    return counts;
  }
  segment->counts(step, counts);
  return counts;
}

bool Schedule::epoch_done() { return open(epoch_).ends_by(step_); }

std::uint64_t Schedule::find_end(std::uint64_t number, Epoch& epoch) const {
  const std::uint64_t end = epoch.num_steps();
  const bool is_past = number < epoch_ || (number == epoch_ && step_ >= end);
  return end == kEndless || is_past || !epoch.may_end_early() ? end : kEndless;
}

std::uint64_t Schedule::num_steps(std::uint64_t epoch) { return find_end(epoch, open(epoch)); }

std::uint64_t Schedule::first_step(std::uint64_t epoch) { return open(epoch).first_step(); }

Draw Schedule::at(std::uint64_t step, std::uint64_t epoch) {
  const std::shared_ptr<const Segment> segment = open(epoch).segment_at(step);
  if (step >= segment->end()) {
    throw ConfigError("step must be in [0, " + std::to_string(segment->end()) + ") in epoch " + std::to_string(epoch) +
                      ", got " + std::to_string(step));
  }
  return segment->at(step);
}

std::vector<std::uint64_t> Schedule::counts(std::uint64_t step, std::uint64_t epoch) {
  const std::shared_ptr<const Segment> segment = open(epoch).segment_at(step);
  if (step > segment->end()) {
    throw ConfigError("step must be in [0, " + std::to_string(segment->end()) + "] in epoch " + std::to_string(epoch) +
                      ", got " + std::to_string(step));
  }
  std::vector<std::uint64_t> counts = counts_at(segment, step);
  counts.resize(std::max(counts.size(), setup().sources.size()));
  return counts;
}

std::vector<double> Schedule::expected_counts(std::uint64_t step, std::uint64_t epoch) {
  std::vector<double> expected(open(epoch).segment_at(step)->knot().sources.size());
  std::vector<std::uint64_t> before;
  std::vector<std::uint64_t> after;
  for (const Epoch::Piece& piece : open(epoch).pieces(0, step)) {
    const Segment& segment = *piece.segment;
    if (const std::span<const double> shares = segment.shares(); !shares.empty()) {
      for (std::size_t i = 0; i < shares.size(); ++i) {
        expected[i] += shares[i] * static_cast<double>(piece.end - piece.begin);
      }
      continue;
    }
    before.resize(segment.knot().sources.size());
    after.resize(before.size());
    segment.counts(piece.begin, before);
    segment.counts(piece.end, after);
    for (std::size_t i = 0; i < before.size(); ++i) expected[i] += static_cast<double>(after[i] - before[i]);
  }
  return expected;
}

std::vector<Epoch::Piece> Schedule::pieces(std::uint64_t epoch, std::uint64_t begin, std::uint64_t end) {
  return open(epoch).pieces(begin, end);
}

void Schedule::fill(std::span<const Epoch::Piece> pieces, std::span<std::int32_t> sources) {
  for (const Epoch::Piece& piece : pieces) {
    piece.segment->fill(piece.begin, sources.first(piece.end - piece.begin));
    sources = sources.subspan(piece.end - piece.begin);
  }
}

std::vector<Place> Schedule::opening_places(std::uint64_t epoch) {
  std::vector<Place> places;
  for (const SourceState& source : open(epoch).opening().sources) places.push_back(source.place);
  return places;
}

std::size_t Schedule::draws(std::span<std::int32_t> sources, std::span<std::int64_t> passes,
                            std::span<std::int64_t> batches) {
  Epoch& epoch = open(epoch_);
  std::size_t done = 0;
  std::vector<std::uint64_t> counts;
  for (const Epoch::Piece& piece : epoch.pieces(step_, add_steps(step_, sources.size()))) {
    if (done == 0) {
      counts = counts_at(piece.segment, step_);
      known_ = {piece.segment, step_, counts};
    }
    counts.resize(piece.segment->knot().sources.size());
    const std::size_t num = piece.end - piece.begin;
    piece.segment->fill(piece.begin, sources.subspan(done, num), passes.subspan(done, num), batches.subspan(done, num),
                        counts);
    done += num;
    ahead_ = {piece.segment, piece.end, counts};
  }
  return done;
}

std::optional<Draw> Schedule::next() {
  if (num_taken_ == buffer_.size()) {
    const std::size_t block = std::clamp(4 * setup().sources.size(), kBlock, kLargestBlock);
    std::vector<std::int32_t> sources(block);
    std::vector<std::int64_t> passes(block);
    std::vector<std::int64_t> batches(block);
    const std::size_t num = draws(sources, passes, batches);
    buffer_.resize(num);
    num_taken_ = 0;
    if (num == 0) return std::nullopt;
    for (std::size_t t = 0; t < num; ++t) {
      buffer_[t] = {step_ + t, sources[t], static_cast<std::uint64_t>(passes[t]),
                    static_cast<std::uint64_t>(batches[t])};
    }
  }
  ++step_;
  return buffer_[num_taken_++];
}

void Schedule::move_to(std::uint64_t epoch, std::uint64_t step) {
  epoch_ = epoch;
  step_ = step;
  buffer_.clear();
  num_taken_ = 0;
}

void Schedule::advance(std::uint64_t num_steps) {
  const std::uint64_t target = add_steps(step_, num_steps);
  const std::uint64_t end = open(epoch_).segment_at(std::min(target, kMaxSteps))->end();
  if (end < target) {
    throw ConfigError("cannot advance by " + std::to_string(num_steps) + " from " + position(epoch_, step_) +
                      ": the epoch ends at step " + std::to_string(end));
  }
  move_to(epoch_, target);
}

void Schedule::next_epoch() {
  if (!epoch_done()) {
    throw ConfigError("the next epoch opens when this one is done; the cursor is at " + position(epoch_, step_));
  }
  (void)open(epoch_ + 1);
  move_to(epoch_ + 1, 0);
}

void Schedule::seek(std::uint64_t epoch, std::uint64_t step) {
  const std::uint64_t end = open(epoch).segment_at(step)->end();
  if (step > end) {
    throw ConfigError("step must be in [0, " + std::to_string(end) + "] in epoch " + std::to_string(epoch) + ", got " +
                      std::to_string(step));
  }
  move_to(epoch, step);
}

void Schedule::append(Event event) {
  Epoch& epoch = open(epoch_);
  event.step = step_;
  epoch.append(event, counts_at(epoch.segment_at(step_), step_));
  // Later epochs follow from this one and are computed again; earlier ones cannot be any more.
  std::erase_if(epochs_, [this](const auto& entry) { return entry.first != epoch_; });
  earliest_ = epoch_;
  move_to(epoch_, step_);
}

bool Schedule::change(Setup next) {
  validate(next);
  if (without_idle_weights(next) == without_idle_weights(setup())) return false;
  append({.kind = Event::Kind::edit, .setup = std::make_shared<const Setup>(std::move(next))});
  return true;
}

bool Schedule::update_weights(std::span<const double> weights) {
  Setup next = setup();
  if (weights.size() != next.num_present()) {
    throw ConfigError("dataloader_weights must have one weight per dataloader (" + std::to_string(next.num_present()) +
                      "), got " + std::to_string(weights.size()));
  }
  next.config.weights.assign(next.sources.size(), 0.0);
  std::size_t given = 0;
  for (std::size_t i = 0; i < next.sources.size(); ++i) {
    if (next.sources[i].present) next.config.weights[i] = weights[given++];
  }
  next.config.curve.reset();
  return change(std::move(next));
}

bool Schedule::set_weight(const std::string& name, double weight) {
  Epoch& epoch = open(epoch_);
  Setup next = setup();
  const std::size_t source = next.index_of(name);
  next.config.weights = next.weights_at(epoch.first_step() + step_);
  next.config.weights[source] = weight;
  next.config.curve.reset();
  return change(std::move(next));
}

bool Schedule::add_source(const std::string& name, std::uint64_t length, std::optional<double> weight) {
  Setup next = setup();
  MixtureConfig& config = next.config;
  const auto known = std::ranges::find(next.sources, name, &SourceSpec::name);
  const auto index = static_cast<std::size_t>(known - next.sources.begin());
  if (known == next.sources.end()) {
    next.sources.push_back({name, length, true});
  } else if (known->present) {
    throw ConfigError("there is already a dataloader '" + name + "' (index " + std::to_string(index) + ")");
  } else {
    *known = {name, length, true};
  }
  const bool has_weights = !config.weights.empty() || config.curve;
  if (!weight && has_weights && config.strategy == Strategy::weighted) {
    throw ConfigError("weight must be given for dataloader '" + name + "': the others have weights");
  }
  if (weight && !has_weights && config.strategy == Strategy::weighted) {
    config.weights.assign(next.sources.size(), 1.0);
  }
  const double value = weight.value_or(0.0);
  const auto place = [&](std::vector<double>& weights) {
    weights.resize(next.sources.size());
    weights[index] = value;
  };
  if (!config.weights.empty()) place(config.weights);
  if (config.curve) {
    for (WeightCurve::Point& point : config.curve->points) place(point.weights);
  }
  return change(std::move(next));
}

bool Schedule::remove_source(const std::string& name) {
  Setup next = setup();
  const std::size_t source = next.index_of(name);
  next.sources[source].present = false;
  if (!next.config.pattern.empty()) {
    std::erase(next.config.pattern, static_cast<std::int32_t>(source));
  }
  return change(std::move(next));
}

bool Schedule::set_config(MixtureConfig config) {
  Setup next = setup();
  next.config = std::move(config);
  return change(std::move(next));
}

void Schedule::end_pass(std::int32_t source, std::uint64_t num_batches) {
  Epoch& epoch = open(epoch_);
  const std::shared_ptr<const Segment> segment = epoch.segment_at(step_);
  const Setup& now = *segment->knot().setup;
  if (source < 0 || static_cast<std::size_t>(source) >= now.sources.size()) {
    throw ConfigError("source must be the index of a dataloader, in [0, " + std::to_string(now.sources.size()) +
                      "), got " + std::to_string(source));
  }
  const auto index = static_cast<std::size_t>(source);
  const Place place = segment->place(index, counts_at(segment, step_)[index]);
  const std::uint64_t length = now.sources[index].length;
  const bool is_over = place.batch == length;
  if (is_over && num_batches == length) return;
  const Place next = is_over ? Place{place.pass + 1, 0} : place;
  const std::string who = "dataloader '" + now.sources[index].name + "'";
  if (next.batch != num_batches) {
    throw ConfigError(who + " stands at batch " + std::to_string(next.batch) + " of pass " + std::to_string(next.pass) +
                      ": its pass cannot end after " + std::to_string(num_batches) + " batches");
  }
  if (num_batches == 0 && now.config.cycle) {
    throw ConfigError(who + " gave no batch in pass " + std::to_string(next.pass) +
                      ": an empty source cannot be cycled");
  }
  append({.kind = Event::Kind::end_pass, .setup = nullptr, .source = source, .num_batches = num_batches});
}

void Schedule::extend_pass(std::int32_t source, std::uint64_t num_batches) {
  const std::size_t num_sources = setup().sources.size();
  if (source < 0 || static_cast<std::size_t>(source) >= num_sources) {
    throw ConfigError("source must be the index of a dataloader, in [0, " + std::to_string(num_sources) + "), got " +
                      std::to_string(source));
  }
  append({.kind = Event::Kind::extend_pass, .setup = nullptr, .source = source, .num_batches = num_batches});
}

ScheduleState Schedule::state(std::uint64_t step) {
  if (step > step_) {
    throw ConfigError("a state can be taken up to the cursor (" + position(epoch_, step_) + "), got step " +
                      std::to_string(step));
  }
  Epoch& epoch = open(epoch_);
  ScheduleState state;
  state.seed = seed_;
  state.initial = initial_;
  state.epoch = epoch_;
  state.first_step = epoch.first_step();
  state.opening = epoch.opening();
  state.events = epoch.events_until(step);
  state.tail = epoch.tail_at(step);
  state.step = step;
  state.counts = counts_at(epoch.segment_at(step), step);
  return state;
}

void Schedule::adopt(const ScheduleState& state) {
  Epoch epoch(fold_in(fold_in(Key{state.seed}, "schedule"), state.epoch), state.first_step, state.opening, state.events,
              state.tail);
  std::shared_ptr<const Segment> segment = epoch.segment_at(state.step);
  if (segment->end() != state.tail.end && !segment->is_counted()) {
    throw StateMismatch("state.tail_end: its schedule ends at another step than the state says");
  }
  std::vector<std::uint64_t> counts(state.counts.size());
  if (!segment->is_counted()) {
    segment->counts(state.step, counts);
    if (counts != state.counts) throw StateMismatch("state.counts: its schedule drew other counts than the state says");
  }
  segment->remember(state.step, state.counts);
  // Nothing below throws.
  initial_ = state.initial;
  earliest_ = state.epoch;
  epochs_.clear();
  epochs_.emplace(state.epoch, std::move(epoch));
  move_to(state.epoch, state.step);
  known_ = {std::move(segment), state.step, state.counts};
}

void Schedule::load(const ScheduleState& state) {
  const std::vector<std::string> differences = find_differences(seed_, initial_, state);
  if (!differences.empty()) {
    std::string message = "the state belongs to another schedule:";
    for (const std::string& difference : differences) message += "\n  " + difference;
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
