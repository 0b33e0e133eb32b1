// What changes a schedule at its cursor: edits by the user, and passes that end elsewhere than their length says.
#include <algorithm>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/schedule.hpp"

namespace mtf {

namespace {

/// The spec without what removed sources still weigh, which decides nothing.
MixtureSpec without_idle_weights(MixtureSpec spec) {
  const auto clear = [&](std::vector<double>& weights) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (!spec.sources[i].present) {
        weights[i] = 0;
      }
    }
  };
  clear(spec.config.weights);
  if (spec.config.curve) {
    for (WeightCurve::Point& point : spec.config.curve->points) {
      clear(point.weights);
    }
  }
  return spec;
}

}  // namespace

void Schedule::append(Event event) {
  Epoch& epoch = open(epoch_);
  event.step = step_;
  epoch.append(event, counts_at(epoch.segment_at(step_), step_));
  // Later epochs follow from this one and are computed again; earlier ones cannot be any more.
  std::erase_if(epochs_, [this](const auto& entry) { return entry.first != epoch_; });
  earliest_ = epoch_;
  move_to(epoch_, step_);
}

bool Schedule::change(MixtureSpec next, std::vector<RestLength> rests) {
  validate(next);
  if (rests.empty() && without_idle_weights(next) == without_idle_weights(spec())) {
    return false;
  }
  append({.kind = EventKind::edit,
          .spec = std::make_shared<const MixtureSpec>(std::move(next)),
          .rests = std::move(rests)});
  return true;
}

bool Schedule::change_weights(MixtureSpec next, std::vector<double> weights, bool keep_curve) {
  if (keep_curve && next.config.curve) {
    next.config.curve = next.config.curve->rebased(open(epoch_).first_step() + step_, weights);
  } else {
    next.config.weights = std::move(weights);
    next.config.curve.reset();
  }
  return change(std::move(next));
}

bool Schedule::update_weights(std::span<const double> weights, bool keep_curve) {
  MixtureSpec next = spec();
  if (weights.size() != next.num_present()) {
    throw ConfigError(format_message("dataloader_weights must have one weight per dataloader ({}), got {}",
                                     next.num_present(), weights.size()));
  }
  std::vector<double> all(next.sources.size());
  std::size_t given = 0;
  for (std::size_t i = 0; i < next.sources.size(); ++i) {
    if (next.sources[i].present) {
      all[i] = weights[given++];
    }
  }
  return change_weights(std::move(next), std::move(all), keep_curve);
}

bool Schedule::set_weight(const std::string& name, double weight, bool keep_curve) {
  Epoch& epoch = open(epoch_);
  MixtureSpec next = spec();
  const std::size_t source = next.index_of(name);
  std::vector<double> weights = next.weights_at(epoch.first_step() + step_);
  weights[source] = weight;
  return change_weights(std::move(next), std::move(weights), keep_curve);
}

bool Schedule::add_source(const std::string& name, std::optional<std::uint64_t> length, std::optional<double> weight,
                          std::optional<std::uint64_t> max_passes, double per_draw) {
  MixtureSpec next = spec();
  MixtureConfig& config = next.config;
  const auto known = std::ranges::find(next.sources, name, &SourceSpec::name);
  const auto index = static_cast<std::size_t>(known - next.sources.begin());
  if (known == next.sources.end()) {
    next.sources.push_back({.name = name, .length = length, .max_passes = max_passes, .per_draw = per_draw});
  } else if (known->present) {
    throw ConfigError(format_message("there is already a dataloader '{}' (index {})", name, index));
  } else {
    known->length = length;
    known->present = true;
    known->max_passes = max_passes;
    known->per_draw = per_draw;
  }
  const bool has_weights = !config.weights.empty() || config.curve;
  if (!weight && has_weights && config.strategy == Strategy::weighted) {
    throw ConfigError(format_message("weight must be given for dataloader '{}': the others have weights", name));
  }
  if (weight && !has_weights && config.strategy == Strategy::weighted) {
    config.weights.assign(next.sources.size(), 1.0);
  }
  const double value = weight.value_or(0.0);
  const auto place = [&](std::vector<double>& weights) {
    weights.resize(next.sources.size());
    weights[index] = value;
  };
  if (!config.weights.empty()) {
    place(config.weights);
  }
  if (config.curve) {
    for (WeightCurve::Point& point : config.curve->points) {
      place(point.weights);
    }
  }
  return change(std::move(next));
}

bool Schedule::remove_source(const std::string& name) {
  MixtureSpec next = spec();
  const std::size_t source = next.index_of(name);
  next.sources[source].present = false;
  if (!next.config.pattern.empty()) {
    std::erase(next.config.pattern, static_cast<std::int32_t>(source));
  }
  return change(std::move(next));
}

bool Schedule::set_config(MixtureConfig config) {
  MixtureSpec next = spec();
  next.config = std::move(config);
  return change(std::move(next));
}

bool Schedule::edit(MixtureSpec next, std::vector<RestLength> rests, MixtureSpec declared) {
  validate(declared);
  const std::vector<SourceSpec>& known = spec().sources;
  for (std::size_t i = 0; i < known.size(); ++i) {
    if (i >= next.sources.size() || next.sources[i].name != known[i].name) {
      throw ConfigError(format_message("an edit must keep dataloader '{}' at index {}", known[i].name, i));
    }
  }
  for (const RestLength& rest : rests) {
    const auto i = static_cast<std::size_t>(rest.source);
    if (rest.source < 0 || i >= known.size() || rest.num_batches > next.sources[i].length.value_or(0)) {
      throw ConfigError(
          format_message("an edit leaves {} batches of the pass under way of source {}, which is more "
                         "than a pass has",
                         rest.num_batches, rest.source));
    }
  }
  const bool changed = change(std::move(next), std::move(rests));
  initial_ = std::move(declared);
  return changed;
}

void Schedule::end_pass(std::int32_t source, std::uint64_t num_batches) {
  Epoch& epoch = open(epoch_);
  const std::shared_ptr<const Segment> segment = epoch.segment_at(step_);
  const MixtureSpec& now = *segment->breakpoint().spec;
  if (source < 0 || static_cast<std::size_t>(source) >= now.sources.size()) {
    throw ConfigError(
        format_message("source must be the index of a dataloader, in [0, {}), got {}", now.sources.size(), source));
  }
  const auto index = static_cast<std::size_t>(source);
  const PassPosition place = segment->pass_position(index, counts_at(segment, step_)[index]);
  const std::uint64_t length = now.sources[index].pass_limit();
  const bool is_over = place.batch == length;
  if (is_over && num_batches == length) {
    return;
  }
  const PassPosition next = is_over ? PassPosition{place.pass + 1, 0} : place;
  const std::string who = "dataloader '" + now.sources[index].name + "'";
  if (next.batch != num_batches) {
    throw ConfigError(format_message("{} stands at batch {} of pass {}: its pass cannot end after {} batches", who,
                                     next.batch, next.pass, num_batches));
  }
  if (num_batches == 0 && now.config.cycle) {
    throw ConfigError(format_message("{} gave no batch in pass {}: an empty source cannot be cycled", who, next.pass));
  }
  append({.kind = EventKind::end_pass, .spec = nullptr, .source = source, .num_batches = num_batches});
}

void Schedule::extend_pass(std::int32_t source, std::uint64_t num_batches) {
  const std::size_t num_sources = spec().sources.size();
  if (source < 0 || static_cast<std::size_t>(source) >= num_sources) {
    throw ConfigError(
        format_message("source must be the index of a dataloader, in [0, {}), got {}", num_sources, source));
  }
  append({.kind = EventKind::extend_pass, .spec = nullptr, .source = source, .num_batches = num_batches});
}

}  // namespace mtf
