#include "mtf/schedule/state/spec_fields.hpp"

#include <functional>
#include <string_view>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/state/fields.hpp"

namespace mtf {

namespace {

Value to_value(const WeightCurve& curve) {
  return ValueMap{{"interpolation", std::string(name_of(curve.interpolation))},
                  {"every", curve.every},
                  {"points", list_of(curve.points, [](const WeightCurve::Point& point) {
                     return ValueMap{{"step", point.step},
                                     {"weights", list_of(point.weights, [](double w) { return w; })}};
                   })}};
}

WeightCurve read_curve(const Field& field) {
  WeightCurve curve;
  curve.interpolation = read_enum<Interpolation>(field["interpolation"]);
  curve.every = field["every"].integer(kMaxCount);
  curve.points = read_list<WeightCurve::Point>(field["points"], [](const Field& point) {
    return WeightCurve::Point{point["step"].integer(kMaxCount),
                              read_list<double>(point["weights"], std::mem_fn(&Field::number))};
  });
  return curve;
}

MixtureConfig read_config(const Field& field) {
  MixtureConfig config;
  config.strategy = read_enum<Strategy>(field["sampling_strategy"]);
  config.order = read_enum<WeightedOrder>(field["weighted_order"]);
  config.weights = read_list<double>(field["dataloader_weights"], std::mem_fn(&Field::number));
  config.pattern = read_list<std::int32_t>(field["alternating_pattern"], [](const Field& entry) {
    return static_cast<std::int32_t>(entry.integer(kMaxIndex));
  });
  config.burst = static_cast<std::int64_t>(field["burst_size"].integer(kMaxCount));
  config.policy = read_enum<EpochPolicy>(field["epoch_length_policy"]);
  if (const Field steps = field["steps_per_epoch"]; !steps.is_none()) {
    config.steps_per_epoch = static_cast<std::int64_t>(steps.integer(kMaxCount));
  }
  config.cycle = field["cycle_short_loaders"].boolean();
  if (const Field on = field["continue_across_epochs"]; !on.is_none()) {
    config.continue_across_epochs = on.boolean();
  }
  if (const Field curve = field["weight_curve"]; !curve.is_none()) {
    config.curve = read_curve(curve);
  }
  return config;
}

void read_caps(const Field& field, MixtureSpec& spec) {
  spec.stops_when_spent = field["stop"].boolean();
  const auto each = [&](std::string_view name, auto set) {
    const std::vector<Field> items = field[name].list();
    if (items.size() != spec.sources.size()) {
      field[name].fail(format_message("a list of {}, one per source", spec.sources.size()));
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      set(spec.sources[i], items[i]);
    }
  };
  each("max_passes", [](SourceSpec& source, const Field& f) { source.max_passes = known_or_none(f); });
  each("per_draw", [](SourceSpec& source, const Field& f) { source.per_draw = f.number(); });
  each("heir", [](SourceSpec& source, const Field& f) {
    source.heir = f.is_none() ? std::nullopt : std::optional(static_cast<std::int32_t>(f.integer(kMaxIndex)));
  });
}

}  // namespace

Value to_value(const MixtureConfig& config) {
  return ValueMap{
      {"sampling_strategy", std::string(name_of(config.strategy))},
      {"weighted_order", std::string(name_of(config.order))},
      {"dataloader_weights", list_of(config.weights, [](double w) { return w; })},
      {"alternating_pattern",
       list_of(config.pattern, [](std::int32_t entry) { return static_cast<std::uint64_t>(entry); })},
      {"burst_size", static_cast<std::uint64_t>(config.burst)},
      {"epoch_length_policy", std::string(name_of(config.policy))},
      {"steps_per_epoch",
       unbounded_or(config.steps_per_epoch ? static_cast<std::uint64_t>(*config.steps_per_epoch) : kUnbounded)},
      {"cycle_short_loaders", config.cycle},
      {"continue_across_epochs", config.continue_across_epochs ? Value(*config.continue_across_epochs) : Value()},
      {"weight_curve", config.curve ? to_value(*config.curve) : Value()}};
}

ValueMap to_value_of_caps(const MixtureSpec& spec) {
  return {{"stop", spec.stops_when_spent},
          {"max_passes", list_of(spec.sources, [](const SourceSpec& s) { return unbounded_or(s.max_passes); })},
          {"heir",
           list_of(spec.sources,
                   [](const SourceSpec& s) { return s.heir ? Value(static_cast<std::uint64_t>(*s.heir)) : Value(); })},
          {"per_draw", list_of(spec.sources, [](const SourceSpec& s) { return s.per_draw; })}};
}

Value to_value(const MixtureSpec& spec) {
  ValueMap fields{{"config", to_value(spec.config)}, {"sources", list_of(spec.sources, [](const SourceSpec& source) {
                                                        return ValueMap{{"name", source.name},
                                                                        {"length", unbounded_or(source.length)},
                                                                        {"present", source.present}};
                                                      })}};
  if (spec.is_capped()) {
    fields.emplace_back("caps", to_value_of_caps(spec));
  }
  return fields;
}

std::shared_ptr<const MixtureSpec> read_spec(const Field& field) {
  MixtureSpec spec;
  spec.config = read_config(field["config"]);
  spec.sources = read_list<SourceSpec>(field["sources"], [](const Field& source) {
    return SourceSpec{.name = source["name"].string(),
                      .length = known_or_none(source["length"]),
                      .present = source["present"].boolean()};
  });
  if (field.has("caps")) {
    read_caps(field["caps"], spec);
  }
  try {
    validate(spec);
  } catch (const ConfigError& error) {
    throw StateMismatch(format_message("{} is not a valid mixture: {}", field.path(), error.what()));
  }
  return std::make_shared<const MixtureSpec>(std::move(spec));
}

std::uint64_t SpecTable::index_of(const MixtureSpec& spec) {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i] == &spec || *specs_[i] == spec) {
      return i;
    }
  }
  specs_.push_back(&spec);
  return specs_.size() - 1;
}

ValueList SpecTable::values() const {
  return list_of(specs_, [](const MixtureSpec* spec) { return to_value(*spec); });
}

std::shared_ptr<const MixtureSpec> read_spec_index(const Field& field, const Specs& specs) {
  return specs[field.integer(specs.size() - 1)];
}

}  // namespace mtf
