#include "mtf/schedule/segment.hpp"

#include <algorithm>
#include <numeric>

#include "mtf/schedule/epoch_length.hpp"
#include "mtf/schedule/integer_weights.hpp"

namespace mtf {

Segment::Segment(Breakpoint breakpoint, Key key, std::uint64_t first_step, std::optional<KnownSteps> known)
    : breakpoint_(std::move(breakpoint)) {
  const bool is_fresh = breakpoint_.origin == breakpoint_.step;
  if (is_fresh) {
    const bool is_capped = breakpoint_.spec->is_capped();
    for (std::size_t i = 0; i < breakpoint_.sources.size(); ++i) {
      SourceState& state = breakpoint_.sources[i];
      state.origin_count = state.count;
      state.limit =
          state.exhausted ? 0 : breakpoint_.spec->num_left(i, state.position.pass, state.position.batch, is_capped);
    }
  }
  choose_sources(first_step + breakpoint_.origin);
  settle_deficits();
  const MixtureConfig& config = breakpoint_.spec->config;
  if (config.strategy == Strategy::weighted && config.curve) {
    const std::uint64_t next = config.curve->next_change(first_step + breakpoint_.origin);
    if (next != kUnbounded) {
      change_ = next - first_step;
    }
  }
  if (!active_.empty()) {
    make_pattern(key);
  }
  find_end(known);
}

/// The step at which `slot` is drawn for the `index`-th time (from 0), kUnbounded if that isn't before `before`.
std::uint64_t Segment::step_of_draw(std::size_t slot, std::uint64_t index, std::uint64_t before) const {
  const std::uint64_t most = before == kUnbounded ? kUnbounded : before - breakpoint_.origin;
  const auto* random = std::get_if<WeightedRandom>(&*pattern_);
  const auto number = static_cast<std::int32_t>(slot);
  const std::uint64_t position = random != nullptr
                                     ? random->turns().position(number, index, most)
                                     : std::visit([&](const auto& p) { return p.position(number, index); }, *pattern_);
  const std::uint64_t step = add_steps(breakpoint_.origin, position);
  return step < before ? step : kUnbounded;
}

/// The step before which a source that has an heir is spent, if that is at most `before`.
std::uint64_t Segment::find_succession(std::uint64_t before) const {
  if (breakpoint_.spec->stops_when_spent) {
    return kUnbounded;
  }
  std::uint64_t found = before;
  bool is_found = false;
  for (std::size_t slot = 0; slot < active_.size(); ++slot) {
    const auto i = static_cast<std::size_t>(active_[slot]);
    const std::uint64_t limit = breakpoint_.sources[i].limit;
    if (breakpoint_.spec->sources[i].heir && breakpoint_.spec->sources[i].max_passes && limit != kUnbounded) {
      const std::uint64_t last = step_of_draw(slot, limit - 1, found);
      is_found = is_found || last != kUnbounded;
      found = last == kUnbounded ? found : last + 1;
    }
  }
  return is_found ? found : kUnbounded;
}

/// Finds the end, and where a source that is spent hands its weight on, unless that is `known`.
void Segment::find_end(const std::optional<KnownSteps>& known) {
  const MixtureSpec& spec = *breakpoint_.spec;
  if (!spec.is_capped() || !pattern_ || breakpoint_.ended) {
    if (known && is_counted()) {
      const std::uint64_t length = std::visit([](const auto& p) { return p.length(); }, *pattern_);
      end_ = std::clamp(known->end, start(), std::max(start(), add_steps(breakpoint_.origin, length)));
    } else {
      end_ = find_epoch_end(breakpoint_, active_, pattern());
    }
    return;
  }
  if (known && is_counted()) {
    change_ = std::max(known->change, start());
    end_ = std::max(known->end, start());
    return;
  }
  const auto num_steps = std::max(start(), static_cast<std::uint64_t>(*spec.config.steps_per_epoch));
  const std::uint64_t succession = find_succession(std::min(change_, num_steps));
  change_ = std::min(change_, succession);
  if (change_ < num_steps && succession == change_) {
    end_ = num_steps;  // the heir may have no weight yet, so the pattern's own end isn't the epoch's
    return;
  }
  end_ = std::min(num_steps, find_epoch_end(breakpoint_, active_, pattern()));
  for (std::size_t slot = 0; slot < active_.size() && spec.stops_when_spent; ++slot) {
    const std::uint64_t limit = breakpoint_.sources[static_cast<std::size_t>(active_[slot])].limit;
    if (limit != kUnbounded) {
      end_ = std::min(end_, std::max(start(), step_of_draw(slot, limit, std::min(change_, end_))));
    }
  }
}

/// Sources of a mixture with largest numbers of passes that have made them.
std::vector<bool> Segment::spent_sources() const {
  std::vector<bool> are_spent(breakpoint_.sources.size());
  for (std::size_t i = 0; i < are_spent.size(); ++i) {
    are_spent[i] = breakpoint_.spec->sources[i].max_passes && breakpoint_.sources[i].limit == 0;
  }
  return are_spent;
}

bool Segment::may_end_early() const noexcept {
  const MixtureConfig& config = breakpoint_.spec->config;
  if (breakpoint_.ended || (config.cycle && config.policy != EpochPolicy::min_length)) {
    return false;
  }
  bool any_unknown = false;
  std::uint64_t num_certain = 0;  // steps that don't hang on a source of unknown length
  for (const SourceState& state : breakpoint_.sources) {
    num_certain = add_steps(num_certain, state.count);
  }
  for (const std::int32_t source : active_) {
    const auto i = static_cast<std::size_t>(source);
    const SourceState& state = breakpoint_.sources[i];
    if (breakpoint_.spec->sources[i].length) {
      num_certain = add_steps(num_certain, add_steps(state.origin_count, state.limit) - state.count);
    } else if (!state.exhausted) {
      any_unknown = true;
    }
  }
  const bool is_full = config.policy == EpochPolicy::fixed_num_steps &&
                       num_certain >= static_cast<std::uint64_t>(*config.steps_per_epoch);
  return any_unknown && !is_full;
}

bool Segment::is_counted() const noexcept { return pattern_ && std::holds_alternative<WeightedRandom>(*pattern_); }

void Segment::remember(std::uint64_t step, std::span<const std::uint64_t> counts) const {
  if (!is_counted()) {
    return;
  }
  std::vector<std::uint64_t> drawn;
  for (const std::int32_t source : active_) {
    const auto i = static_cast<std::size_t>(source);
    drawn.push_back(counts[i] - breakpoint_.sources[i].origin_count);
  }
  std::get<WeightedRandom>(*pattern_).remember(step - breakpoint_.origin, drawn);
}

std::optional<double> Segment::deviation_bound() const noexcept {
  if (!is_certain_) {
    return std::nullopt;
  }
  const auto* even = pattern_ ? std::get_if<WeightedEven>(&*pattern_) : nullptr;
  return even == nullptr ? std::nullopt : std::optional(even->deviation_bound());
}

void Segment::choose_sources(std::uint64_t training_step) {
  const MixtureSpec& spec = *breakpoint_.spec;
  std::vector<bool> is_active = spec.active_at(training_step);
  std::vector<double> weights;
  if (spec.config.strategy == Strategy::weighted) {
    weights = spec.weights_at(training_step);
    if (spec.is_capped() && !spec.stops_when_spent) {
      spec.pass_on(weights, spent_sources());
      for (std::size_t i = 0; i < weights.size(); ++i) {
        is_active[i] = weights[i] > 0;
      }
    }
  }
  const bool drops_out = spec.drops_out();
  for (std::size_t i = 0; i < is_active.size(); ++i) {
    if (!is_active[i]) {
      continue;
    }
    if (drops_out && breakpoint_.sources[i].limit == 0) {
      continue;
    }
    active_.push_back(static_cast<std::int32_t>(i));
  }
  if (spec.config.strategy != Strategy::weighted) {
    return;
  }
  double sum = 0;
  for (const std::int32_t source : active_) {
    slot_weights_.push_back(weights[static_cast<std::size_t>(source)]);
    sum += slot_weights_.back();
  }
  slot_units_ = active_.empty() ? std::vector<std::uint32_t>{} : quantise(slot_weights_);
  shares_.assign(weights.size(), 0.0);
  for (const std::int32_t source : active_) {
    const auto i = static_cast<std::size_t>(source);
    shares_[i] = weights[i] / sum;
  }
}

void Segment::make_pattern(Key key) {
  const MixtureSpec& spec = *breakpoint_.spec;
  const MixtureConfig& config = spec.config;
  std::vector<std::uint64_t> limits;
  std::vector<std::string> names;
  const bool drops_out = spec.drops_out();
  for (const std::int32_t source : active_) {
    const auto i = static_cast<std::size_t>(source);
    names.push_back(spec.sources[i].name);
    if (drops_out) {
      limits.push_back(breakpoint_.sources[i].limit);
    }
  }
  std::vector<std::int32_t> cycle;
  for (const std::int32_t source : config.pattern) {
    const auto found = std::ranges::lower_bound(active_, source);
    if (found != active_.end() && *found == source) {
      cycle.push_back(static_cast<std::int32_t>(found - active_.begin()));
    }
  }
  const Blocks blocks = config.strategy == Strategy::sequential ? find_blocks(begun_breakpoint(), active_) : Blocks{};
  pattern_ = mtf::make_pattern(config.strategy, config.order,
                               {.num_slots = static_cast<std::uint32_t>(active_.size()),
                                .burst = static_cast<std::uint64_t>(config.burst),
                                .limits = limits,
                                .cycle = cycle,
                                .first_round = blocks.first,
                                .later_rounds = blocks.later,
                                .weights = slot_units_,
                                .names = names,
                                .deficits = breakpoint_.continues ? std::span<const std::int64_t>(slot_deficits_)
                                                                  : std::span<const std::int64_t>{},
                                .num_in_block = breakpoint_.num_in_block,
                                .key = fold_in(key, breakpoint_.origin)});
}

PassPosition Segment::pass_position(std::size_t source, std::uint64_t count) const noexcept {
  const SourceState& state = breakpoint_.sources[source];
  const std::uint64_t num_new = count - state.count;
  if (num_new == 0) {
    return state.position;
  }
  const std::uint64_t batch = state.position.batch + num_new;
  const std::uint64_t length = breakpoint_.spec->sources[source].pass_limit();
  if (batch <= length) {
    return {state.position.pass, batch};
  }
  return {state.position.pass + (batch - 1) / length, (batch - 1) % length + 1};
}

Draw Segment::at(std::uint64_t step) const {
  const SlotDraw drawn = std::visit([&](const auto& p) { return p.at(step - breakpoint_.origin); }, *pattern_);
  const std::int32_t source = active_[static_cast<std::size_t>(drawn.slot)];
  const PassPosition after =
      pass_position(static_cast<std::size_t>(source),
                    breakpoint_.sources[static_cast<std::size_t>(source)].origin_count + drawn.index + 1);
  return {step, source, after.pass, after.batch - 1};
}

std::uint64_t Segment::step_of(std::size_t source, PassPosition draw) const {
  const auto found = std::ranges::lower_bound(active_, static_cast<std::int32_t>(source));
  if (!pattern_ || found == active_.end() || *found != static_cast<std::int32_t>(source)) {
    return kUnbounded;
  }
  const SourceState& state = breakpoint_.sources[source];
  const std::uint64_t length = breakpoint_.spec->sources[source].pass_limit();
  if (draw < state.position || (draw.pass != state.position.pass && draw.batch >= length)) {
    return kUnbounded;
  }
  // Draws of the source from the breakpoint on, before this one.
  const __int128 num_new = __int128{draw.pass - state.position.pass} * length + draw.batch - state.position.batch;
  const __int128 index = num_new + (state.count - state.origin_count);
  if (index >= static_cast<__int128>(kMaxSteps)) {
    return kUnbounded;
  }
  const auto slot = static_cast<std::int32_t>(found - active_.begin());
  const std::uint64_t step =
      std::visit([&](const auto& p) { return p.position(slot, static_cast<std::uint64_t>(index)); }, *pattern_);
  return add_steps(breakpoint_.origin, step);
}

void Segment::fill(std::uint64_t begin, std::span<std::int32_t> sources) const {
  if (sources.empty()) {
    return;
  }
  std::visit([&](const auto& p) { p.fill(begin - breakpoint_.origin, sources); }, *pattern_);
  const bool is_identity = active_.back() + 1 == static_cast<std::int32_t>(active_.size());
  if (is_identity) {
    return;
  }
  for (std::int32_t& source : sources) {
    source = active_[static_cast<std::size_t>(source)];
  }
}

void Segment::fill(std::uint64_t begin, std::span<std::int32_t> sources, std::span<std::int64_t> passes,
                   std::span<std::int64_t> batches, std::span<std::uint64_t> counts) const {
  fill(begin, sources);
  if (sources.size() < counts.size()) {
    // Few draws: each source's place is computed when it is drawn, not every source's beforehand.
    for (std::size_t t = 0; t < sources.size(); ++t) {
      const auto source = static_cast<std::size_t>(sources[t]);
      const PassPosition after = pass_position(source, ++counts[source]);
      passes[t] = static_cast<std::int64_t>(after.pass);
      batches[t] = static_cast<std::int64_t>(after.batch - 1);
    }
    return;
  }
  std::vector<PassPosition> places(counts.size());
  for (std::size_t i = 0; i < places.size(); ++i) {
    places[i] = pass_position(i, counts[i]);
  }
  for (std::size_t t = 0; t < sources.size(); ++t) {
    const auto source = static_cast<std::size_t>(sources[t]);
    PassPosition& next = places[source];
    if (next.batch == breakpoint_.spec->sources[source].pass_limit()) {
      next = {next.pass + 1, 0};
    }
    passes[t] = static_cast<std::int64_t>(next.pass);
    batches[t] = static_cast<std::int64_t>(next.batch++);
    ++counts[source];
  }
}

void Segment::counts(std::uint64_t step, std::span<std::uint64_t> out) const {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = breakpoint_.sources[i].count;
  }
  if (step == start() || !pattern_) {
    return;
  }
  std::vector<std::uint64_t> drawn(active_.size());
  std::visit([&](const auto& p) { p.counts(step - breakpoint_.origin, drawn); }, *pattern_);
  for (std::size_t slot = 0; slot < active_.size(); ++slot) {
    const auto source = static_cast<std::size_t>(active_[slot]);
    out[source] = breakpoint_.sources[source].origin_count + drawn[slot];
  }
}

/// SEQUENTIAL: what is known once the first step was drawn. Before it another edit may still add to the round before.
Breakpoint Segment::begun_breakpoint() const {
  Breakpoint breakpoint = breakpoint_;
  begin_round_if_due(breakpoint, active_);
  return breakpoint;
}

Breakpoint Segment::continued_breakpoint(std::uint64_t step, std::span<const std::uint64_t> counts) const {
  const bool is_sequential = pattern_ && std::holds_alternative<Sequential>(*pattern_);
  Breakpoint breakpoint = is_sequential && step > start() ? begun_breakpoint() : breakpoint_;
  const Blocks blocks = is_sequential ? find_blocks(breakpoint, active_) : Blocks{};
  breakpoint.step = step;
  std::vector<std::optional<std::uint64_t>> round_counts(breakpoint.sources.size());
  for (std::size_t i = 0; i < breakpoint.sources.size(); ++i) {
    if (const auto before = breakpoint.sources[i].round_count) {
      round_counts[i] = add_steps(*before, counts[i] - breakpoint.sources[i].count);
    }
  }
  if (is_sequential) {
    // Rounds that were completed on the way are taken off; the draws of the current one stay.
    const std::uint64_t first = std::accumulate(blocks.first.begin(), blocks.first.end(), std::uint64_t{0}, add_steps);
    const std::uint64_t later = std::accumulate(blocks.later.begin(), blocks.later.end(), std::uint64_t{0}, add_steps);
    const std::uint64_t since = step - breakpoint_.origin;
    if (later != 0 && since > first && first != kUnbounded) {
      std::uint64_t in_round = later == kUnbounded ? since - first : (since - first - 1) % later + 1;
      std::ranges::fill(round_counts, std::uint64_t{0});  // of those, too, that left: they come back in a new round
      for (std::size_t slot = 0; slot < active_.size(); ++slot) {
        const std::uint64_t given = std::min(in_round, blocks.later[slot]);
        round_counts[static_cast<std::size_t>(active_[slot])] = given;
        in_round -= given;
      }
    }
  }
  for (std::size_t i = 0; i < breakpoint.sources.size(); ++i) {
    SourceState& state = breakpoint.sources[i];
    state.position = pass_position(i, counts[i]);
    state.count = counts[i];
    state.round_count = round_counts[i];
  }
  return breakpoint;
}

Breakpoint Segment::fresh_breakpoint(std::uint64_t step, std::span<const std::uint64_t> counts) const {
  Breakpoint breakpoint = continued_breakpoint(step, counts);
  breakpoint.origin = step;
  carry_deficits(breakpoint, step);
  return breakpoint;
}

}  // namespace mtf
