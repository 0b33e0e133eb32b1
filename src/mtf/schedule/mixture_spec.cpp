#include "mtf/schedule/mixture_spec.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <sstream>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

std::string quoted(std::string_view name) { return "'" + std::string(name) + "'"; }

/// What a number of steps must be that is too small or too large.
std::string broken_rule(std::int64_t num_steps) { return num_steps < 1 ? "at least 1" : "below 2^62"; }

void validate_sources(std::span<const SourceSpec> sources) {
  if (sources.empty()) {
    throw ConfigError("a mixture needs at least one dataloader, got none");
  }
  std::map<std::string_view, std::size_t> seen;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const SourceSpec& source = sources[i];
    const std::string where = format_message("dataloader_names[{}]", i);
    if (source.name.empty()) {
      throw ConfigError(format_message("{} must not be empty", where));
    }
    const auto [other, is_new] = seen.emplace(source.name, i);
    if (!is_new) {
      throw ConfigError(format_message("{} must be unique, got {}, which is also dataloader_names[{}]", where,
                                       quoted(source.name), other->second));
    }
    if (source.length == 0 && source.present) {
      throw ConfigError(format_message("dataloader {} (index {}) is empty: it must have at least one batch, got 0",
                                       quoted(source.name), i));
    }
    if (source.length && *source.length >= kMaxSteps) {
      throw ConfigError(format_message("the length of dataloader {} must be below 2^62, got {}", quoted(source.name),
                                       *source.length));
    }
  }
}

void validate_weights(const MixtureSpec& spec) {
  const MixtureConfig& config = spec.config;
  const std::vector<SourceSpec>& sources = spec.sources;
  if (config.curve) {
    validate(*config.curve, sources.size());
  }
  if (config.weights.empty()) {
    return;
  }
  if (config.weights.size() != sources.size()) {
    throw ConfigError(format_message("dataloader_weights must have one weight per dataloader ({}), got {}",
                                     sources.size(), config.weights.size()));
  }
  bool positive = false;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const double weight = config.weights[i];
    if (!std::isfinite(weight) || weight < 0) {
      throw ConfigError(format_message("dataloader_weights[{}] ({}) must be finite and not negative, got {}", i,
                                       quoted(sources[i].name), weight));
    }
    positive = positive || (weight > 0 && sources[i].present);
  }
  if (!positive) {
    throw ConfigError("dataloader_weights must have a positive weight, all are 0");
  }
}

void validate_pattern(const MixtureSpec& spec) {
  const MixtureConfig& config = spec.config;
  const std::vector<SourceSpec>& sources = spec.sources;
  if (config.strategy == Strategy::alternating && config.pattern.empty()) {
    throw ConfigError("alternating_pattern must have at least one entry with ALTERNATING, got none");
  }
  for (std::size_t i = 0; i < config.pattern.size(); ++i) {
    const std::int32_t entry = config.pattern[i];
    const std::string where = format_message("alternating_pattern[{}]", i);
    if (entry < 0 || static_cast<std::size_t>(entry) >= sources.size()) {
      throw ConfigError(
          format_message("{} must be the index of a dataloader, in [0, {}), got {}", where, sources.size(), entry));
    }
    if (!sources[static_cast<std::size_t>(entry)].present) {
      throw ConfigError(format_message("{} is {}, dataloader {}, which was removed", where, entry,
                                       quoted(sources[static_cast<std::size_t>(entry)].name)));
    }
  }
}

/// The largest numbers of passes, and who gets a spent source's weight.
void validate_caps(const MixtureSpec& spec) {
  if (!spec.is_capped()) {
    return;
  }
  const MixtureConfig& config = spec.config;
  if (config.strategy != Strategy::weighted || config.policy != EpochPolicy::fixed_num_steps || !config.cycle ||
      config.burst != 1) {
    throw ConfigError(
        "max_passes needs sampling_strategy=WEIGHTED, epoch_length_policy=FIXED_NUM_STEPS, cycle_short_loaders=True "
        "and burst_size=1");
  }
  for (std::size_t i = 0; i < spec.sources.size(); ++i) {
    const SourceSpec& source = spec.sources[i];
    if (!std::isfinite(source.per_draw) || source.per_draw <= 0) {
      throw ConfigError(format_message("a batch of {} must count more than 0 of what weights are of, got {}",
                                       quoted(source.name), source.per_draw));
    }
    if (!source.max_passes) {
      continue;
    }
    const std::string who = quoted(source.name);
    if (*source.max_passes < 1 || multiply_steps(*source.max_passes, source.length.value_or(1)) == kUnbounded) {
      throw ConfigError(format_message("max_passes[{}] must be at least 1 and give below 2^62 batches, got {}", who,
                                       *source.max_passes));
    }
    if (!source.length) {
      throw ConfigError(format_message("max_passes[{}] needs a source whose length is known", who));
    }
    if (source.heir && (*source.heir < 0 || static_cast<std::size_t>(*source.heir) >= spec.sources.size() ||
                        static_cast<std::size_t>(*source.heir) == i)) {
      throw ConfigError(format_message("when_spent[{}] must be another source", who));
    }
  }
}

/// Policies that must know every active length; the error names the source, the policy and the way out.
void validate_lengths(const MixtureSpec& spec, const std::vector<bool>& active) {
  const MixtureConfig& config = spec.config;
  const std::vector<SourceSpec>& sources = spec.sources;
  const bool blocks_of_shortest = config.strategy == Strategy::sequential && config.policy == EpochPolicy::min_length;
  const bool needs_lengths =
      blocks_of_shortest ||
      (config.cycle && (config.policy == EpochPolicy::sum_of_lengths || config.policy == EpochPolicy::max_length));
  if (!needs_lengths) {
    return;
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (!active[i] || sources[i].length) {
      continue;
    }
    const std::string source = format_message("dataloader {} (index {})", quoted(sources[i].name), i);
    const std::string way_out =
        blocks_of_shortest
            ? "use epoch_length_policy=FIXED_NUM_STEPS with steps_per_epoch"
            : "use epoch_length_policy=FIXED_NUM_STEPS with steps_per_epoch, or cycle_short_loaders=False";
    if (config.policy == EpochPolicy::max_length) {
      throw ConfigError(format_message(
          "epoch_length_policy=MAX_LENGTH can never end: {} has no known length and is cycled; {}", source, way_out));
    }
    throw ConfigError(format_message("epoch_length_policy={} needs the length of {}, which is unknown; {}",
                                     name_of(config.policy), source, way_out));
  }
}

}  // namespace

std::size_t MixtureSpec::num_present() const noexcept {
  return static_cast<std::size_t>(std::ranges::count(sources, true, &SourceSpec::present));
}

bool MixtureSpec::is_capped() const noexcept {
  return std::ranges::any_of(sources, [](const SourceSpec& source) { return source.max_passes.has_value(); });
}

std::uint64_t MixtureSpec::num_left(std::size_t source, std::uint64_t pass, std::uint64_t batch,
                                    bool with_caps) const noexcept {
  const std::uint64_t length = sources[source].pass_limit();
  if (const auto most = sources[source].max_passes) {
    return pass >= *most ? 0 : (*most - pass) * length - std::min(length, batch);
  }
  return length == kUnbounded || with_caps ? kUnbounded : length - std::min(length, batch);
}

std::optional<std::size_t> MixtureSpec::find_heir(std::size_t source, const std::vector<bool>& are_spent) const {
  std::size_t i = source;
  for (std::size_t steps = 0; steps < sources.size() && sources[i].heir; ++steps) {
    i = static_cast<std::size_t>(*sources[i].heir);
    if (sources[i].present && !are_spent[i]) {
      return i;
    }
  }
  return std::nullopt;
}

void MixtureSpec::pass_on(std::vector<double>& weights, const std::vector<bool>& are_spent) const {
  const std::vector<double> before = weights;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!are_spent[i]) {
      continue;
    }
    weights[i] = 0;
    if (const auto heir = find_heir(i, are_spent)) {
      weights[*heir] += before[i] * (sources[i].per_draw / sources[*heir].per_draw);
    }
  }
}

std::vector<double> MixtureSpec::weights_at(std::uint64_t training_step) const {
  std::vector<double> weights = config.curve             ? config.curve->at(training_step)
                                : config.weights.empty() ? std::vector<double>(sources.size(), 1.0)
                                                         : config.weights;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (!sources[i].present) {
      weights[i] = 0;
    }
  }
  return weights;
}

std::vector<bool> MixtureSpec::active_at(std::uint64_t training_step) const {
  std::vector<bool> active(sources.size());
  if (config.strategy == Strategy::weighted) {
    const std::vector<double> weights = weights_at(training_step);
    for (std::size_t i = 0; i < active.size(); ++i) {
      active[i] = weights[i] > 0;
    }
  } else if (config.strategy == Strategy::alternating) {
    for (const std::int32_t entry : config.pattern) {
      active[static_cast<std::size_t>(entry)] = true;
    }
  } else {
    for (std::size_t i = 0; i < active.size(); ++i) {
      active[i] = sources[i].present;
    }
  }
  return active;
}

std::size_t MixtureSpec::index_of(std::string_view name) const {
  std::vector<std::string> known;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (!sources[i].present) {
      continue;
    }
    if (sources[i].name == name) {
      return i;
    }
    known.push_back(sources[i].name);
  }
  std::string listed;
  for (const std::string& other : known) {
    listed += (listed.empty() ? "" : ", ") + other;
  }
  throw ConfigError(
      format_message("there is no dataloader {}{} (known: {})", quoted(name), suggest(name, known), listed));
}

void validate(const MixtureSpec& spec) {
  const MixtureConfig& config = spec.config;
  const std::vector<SourceSpec>& sources = spec.sources;
  validate_sources(sources);
  if (spec.num_present() == 0) {
    throw ConfigError("the last dataloader cannot be removed: nothing would be drawn");
  }
  if (config.burst < 1 || config.burst >= static_cast<std::int64_t>(kMaxSteps)) {
    throw ConfigError(format_message("burst_size must be {}, got {}", broken_rule(config.burst), config.burst));
  }
  validate_weights(spec);
  validate_pattern(spec);
  validate_caps(spec);
  if (config.policy == EpochPolicy::fixed_num_steps && !config.steps_per_epoch) {
    throw ConfigError("steps_per_epoch must be set with epoch_length_policy=FIXED_NUM_STEPS, got None");
  }
  if (config.steps_per_epoch &&
      (*config.steps_per_epoch < 1 || *config.steps_per_epoch >= static_cast<std::int64_t>(kMaxSteps))) {
    throw ConfigError(format_message("steps_per_epoch must be {}, got {}", broken_rule(*config.steps_per_epoch),
                                     *config.steps_per_epoch));
  }
  std::vector<bool> active = spec.active_at(0);
  if (config.strategy == Strategy::weighted && config.curve) {
    for (const WeightCurve::Point& point : config.curve->points) {
      for (std::size_t i = 0; i < sources.size(); ++i) {
        active[i] = active[i] || (point.weights[i] > 0 && sources[i].present);
      }
      const auto is_drawn = [&](std::size_t i) { return point.weights[i] > 0 && sources[i].present; };
      bool any = false;
      for (std::size_t i = 0; i < sources.size(); ++i) {
        any = any || is_drawn(i);
      }
      if (!any) {
        throw ConfigError(format_message(
            "weight_curve: the point at step {} gives no weight to any dataloader that is left", point.step));
      }
    }
  }
  validate_lengths(spec, active);
}

std::vector<std::string> find_useless_options(const MixtureConfig& config) {
  const std::string with = " has no effect with sampling_strategy=" + std::string(name_of(config.strategy));
  std::vector<std::string> found;
  if (config.strategy != Strategy::weighted) {
    if (!config.weights.empty()) {
      found.push_back(format_message("dataloader_weights{}", with));
    }
    if (config.curve) {
      found.push_back(format_message("weight_curve{}", with));
    }
    if (config.order != WeightedOrder::random) {
      found.push_back(format_message("weighted_order{}", with));
    }
  } else if (config.curve && !config.weights.empty()) {
    found.emplace_back("dataloader_weights has no effect beside weight_curve");
  }
  if (config.strategy != Strategy::alternating && !config.pattern.empty()) {
    found.push_back(format_message("alternating_pattern{}", with));
  }
  if (config.strategy == Strategy::sequential && config.burst != 1) {
    found.push_back(format_message("burst_size{}", with));
  }
  if (config.steps_per_epoch && config.policy != EpochPolicy::fixed_num_steps) {
    found.push_back(
        format_message("steps_per_epoch has no effect with epoch_length_policy={}", name_of(config.policy)));
  }
  return found;
}

std::string suggest(std::string_view name, std::span<const std::string> known) {
  const auto distance = [](std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= b.size(); ++j) {
        const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
      }
    }
    return row.back();
  };
  std::string_view best;
  std::size_t least = name.size() / 2 + 1;
  for (const std::string& other : known) {
    if (const std::size_t d = distance(name, other); d < least) {
      least = d;
      best = other;
    }
  }
  return best.empty() ? "" : "; did you mean " + quoted(best) + "?";
}

}  // namespace mtf
