#include "mtf/schedule/schedule_state.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <sstream>

#include "mtf/error.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {

namespace {

constexpr std::uint64_t kMaxCount = kMaxSteps - 1;
constexpr std::uint64_t kMaxIndex = (std::uint64_t{1} << 31) - 1;

// Natural numbers that may be endless are None when they are.
Value endless_or(std::uint64_t value) { return value == kEndless ? Value() : Value(value); }
std::uint64_t endless_or(const Field& field) { return field.is_none() ? kEndless : field.integer(kMaxCount); }

template <class Range, class Make>
ValueList list_of(const Range& range, Make make) {
  ValueList out;
  out.reserve(std::size(range));
  for (const auto& item : range) out.emplace_back(make(item));
  return out;
}

template <class T, class Read>
std::vector<T> read_list(const Field& field, Read read) {
  std::vector<T> out;
  for (const Field& item : field.list()) out.push_back(read(item));
  return out;
}

template <class Enum>
Enum read_enum(const Field& field, int num_members) {
  std::string known;
  for (int i = 0; i < num_members; ++i) {
    const auto member = static_cast<Enum>(i);
    if (field.string() == name_of(member)) return member;
    known += (i > 0 ? ", " : "") + std::string(name_of(member));
  }
  field.fail("one of " + known);
}

Value to_value(const WeightCurve& curve) {
  return ValueMap{{"interpolation", curve.interpolation == Interpolation::step ? "STEP" : "LINEAR"},
                  {"every", curve.every},
                  {"points", list_of(curve.points, [](const WeightCurve::Point& point) {
                     return ValueMap{{"step", point.step},
                                     {"weights", list_of(point.weights, [](double w) { return w; })}};
                   })}};
}

WeightCurve read_curve(const Field& field) {
  WeightCurve curve;
  const Field kind = field["interpolation"];
  if (kind.string() != "STEP" && kind.string() != "LINEAR") kind.fail("one of STEP, LINEAR");
  curve.interpolation = kind.string() == "STEP" ? Interpolation::step : Interpolation::linear;
  curve.every = field["every"].integer(kMaxCount);
  curve.points = read_list<WeightCurve::Point>(field["points"], [](const Field& point) {
    return WeightCurve::Point{point["step"].integer(kMaxCount),
                              read_list<double>(point["weights"], std::mem_fn(&Field::number))};
  });
  return curve;
}

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
       endless_or(config.steps_per_epoch ? static_cast<std::uint64_t>(*config.steps_per_epoch) : kEndless)},
      {"cycle_short_loaders", config.cycle},
      {"continue_across_epochs", config.continue_across_epochs ? Value(*config.continue_across_epochs) : Value()},
      {"weight_curve", config.curve ? to_value(*config.curve) : Value()}};
}

MixtureConfig read_config(const Field& field) {
  MixtureConfig config;
  config.strategy = read_enum<Strategy>(field["sampling_strategy"], 4);
  config.order = read_enum<WeightedOrder>(field["weighted_order"], 3);
  config.weights = read_list<double>(field["dataloader_weights"], std::mem_fn(&Field::number));
  config.pattern = read_list<std::int32_t>(field["alternating_pattern"], [](const Field& entry) {
    return static_cast<std::int32_t>(entry.integer(kMaxIndex));
  });
  config.burst = static_cast<std::int64_t>(field["burst_size"].integer(kMaxCount));
  config.policy = read_enum<EpochPolicy>(field["epoch_length_policy"], 4);
  if (const Field steps = field["steps_per_epoch"]; !steps.is_none()) {
    config.steps_per_epoch = static_cast<std::int64_t>(steps.integer(kMaxCount));
  }
  config.cycle = field["cycle_short_loaders"].boolean();
  if (const Field on = field["continue_across_epochs"]; !on.is_none()) config.continue_across_epochs = on.boolean();
  if (const Field curve = field["weight_curve"]; !curve.is_none()) config.curve = read_curve(curve);
  return config;
}

Value to_value(const Setup& setup) {
  return ValueMap{{"config", to_value(setup.config)}, {"sources", list_of(setup.sources, [](const SourceSpec& source) {
                                                         return ValueMap{{"name", source.name},
                                                                         {"length", endless_or(source.length)},
                                                                         {"present", source.present}};
                                                       })}};
}

std::shared_ptr<const Setup> read_setup(const Field& field) {
  Setup setup;
  setup.config = read_config(field["config"]);
  setup.sources = read_list<SourceSpec>(field["sources"], [](const Field& source) {
    return SourceSpec{source["name"].string(), endless_or(source["length"]), source["present"].boolean()};
  });
  try {
    validate(setup);
  } catch (const ConfigError& error) {
    throw StateMismatch(field.path() + " is not a valid mixture: " + error.what());
  }
  return std::make_shared<const Setup>(std::move(setup));
}

/// The setups of a state, each once; knots and events refer to them by index.
class SetupTable {
 public:
  std::uint64_t index_of(const Setup& setup) {
    for (std::size_t i = 0; i < setups_.size(); ++i) {
      if (setups_[i] == &setup || *setups_[i] == setup) return i;
    }
    setups_.push_back(&setup);
    return setups_.size() - 1;
  }
  [[nodiscard]] ValueList values() const {
    return list_of(setups_, [](const Setup* setup) { return to_value(*setup); });
  }

 private:
  std::vector<const Setup*> setups_;
};

using Setups = std::vector<std::shared_ptr<const Setup>>;

std::shared_ptr<const Setup> read_setup_index(const Field& field, const Setups& setups) {
  return setups[field.integer(setups.size() - 1)];
}

Value to_value(const Knot& knot, SetupTable& setups) {
  const auto each = [&](auto get) { return list_of(knot.sources, get); };
  return ValueMap{{"step", knot.step},
                  {"origin", knot.origin},
                  {"ended", knot.ended},
                  {"setup", setups.index_of(*knot.setup)},
                  {"pass", each([](const SourceState& s) { return s.place.pass; })},
                  {"batch", each([](const SourceState& s) { return s.place.batch; })},
                  {"count", each([](const SourceState& s) { return s.count; })},
                  {"origin_count", each([](const SourceState& s) { return s.origin_count; })},
                  {"limit", each([](const SourceState& s) { return endless_or(s.limit); })},
                  {"round_count", each([](const SourceState& s) { return endless_or(s.round_count); })},
                  {"spent", each([](const SourceState& s) { return s.spent; })}};
}

/// Draws of all sources add up to the steps.
void check_sum(const Field& field, const std::vector<std::uint64_t>& counts, std::uint64_t step) {
  const std::uint64_t sum = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}, add_steps);
  if (sum != step) field.fail("draws that add up to the step (" + std::to_string(step) + ")");
}

Knot read_knot(const Field& field, const Setups& setups) {
  Knot knot;
  knot.step = field["step"].integer(kMaxCount);
  knot.origin = field["origin"].integer(knot.step);
  knot.ended = field["ended"].boolean();
  knot.setup = read_setup_index(field["setup"], setups);
  const std::size_t num_sources = knot.setup->sources.size();
  knot.sources.resize(num_sources);
  const auto each = [&](std::string_view name, auto set) {
    const Field column = field[name];
    const std::vector<Field> items = column.list();
    if (items.size() != num_sources) column.fail("a list of " + std::to_string(num_sources) + ", one per source");
    for (std::size_t i = 0; i < num_sources; ++i) set(i, items[i]);
  };
  std::vector<std::uint64_t> counts(num_sources);
  std::vector<std::uint64_t> origin_counts(num_sources);
  each("pass", [&](std::size_t i, const Field& f) { knot.sources[i].place.pass = f.integer(kMaxCount); });
  each("batch", [&](std::size_t i, const Field& f) {
    knot.sources[i].place.batch = f.integer(std::min(kMaxCount, knot.setup->sources[i].length));
  });
  each("count", [&](std::size_t i, const Field& f) { counts[i] = knot.sources[i].count = f.integer(knot.step); });
  each("origin_count", [&](std::size_t i, const Field& f) {
    origin_counts[i] = knot.sources[i].origin_count = f.integer(knot.sources[i].count);
  });
  each("limit", [&](std::size_t i, const Field& f) { knot.sources[i].limit = endless_or(f); });
  each("round_count", [&](std::size_t i, const Field& f) { knot.sources[i].round_count = endless_or(f); });
  each("spent", [&](std::size_t i, const Field& f) { knot.sources[i].spent = f.boolean(); });
  check_sum(field["count"], counts, knot.step);
  check_sum(field["origin_count"], origin_counts, knot.origin);
  return knot;
}

std::string_view name_of_kind(Event::Kind kind) {
  return kind == Event::Kind::edit ? "edit" : kind == Event::Kind::end_pass ? "end_pass" : "extend_pass";
}

Value to_value(const Event& event, SetupTable& setups) {
  ValueMap out{{"step", event.step}, {"kind", std::string(name_of_kind(event.kind))}};
  if (event.kind == Event::Kind::edit) {
    out.emplace_back("setup", setups.index_of(*event.setup));
  } else {
    out.emplace_back("source", static_cast<std::uint64_t>(event.source));
    out.emplace_back("num_batches", event.num_batches);
  }
  return out;
}

Event read_event(const Field& field, const Setups& setups) {
  Event event;
  event.step = field["step"].integer(kMaxCount);
  const Field kind = field["kind"];
  if (kind.string() == name_of_kind(Event::Kind::edit)) {
    event.setup = read_setup_index(field["setup"], setups);
    return event;
  }
  if (kind.string() == name_of_kind(Event::Kind::end_pass)) {
    event.kind = Event::Kind::end_pass;
  } else if (kind.string() == name_of_kind(Event::Kind::extend_pass)) {
    event.kind = Event::Kind::extend_pass;
  } else {
    kind.fail("one of edit, end_pass, extend_pass");
  }
  event.source = static_cast<std::int32_t>(field["source"].integer(kMaxIndex));
  event.num_batches = field["num_batches"].integer(kMaxCount);
  return event;
}

/// Sources are only ever added at the end: every later setup names the earlier one's sources in the same order.
void check_extends(const Field& field, const Setup& before, const Setup& after) {
  const auto& a = before.sources;
  const auto& b = after.sources;
  const bool extends =
      b.size() >= a.size() &&
      std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) { return x.name == y.name; });
  if (!extends) throw StateMismatch(field.path() + " does not contain the sources of the setup before it");
}

void check_log(const Field& root, const ScheduleState& state) {
  const Setup* setup = state.opening.setup.get();
  check_extends(root["opening"], state.initial, *setup);
  std::uint64_t step = 0;
  for (std::size_t i = 0; i < state.events.size(); ++i) {
    const Event& event = state.events[i];
    const Field field = root["events"].list()[i];
    if (event.step < step || event.step > state.step) {
      field["step"].fail("in [" + std::to_string(step) + ", " + std::to_string(state.step) + "]");
    }
    step = event.step;
    if (event.setup) {
      check_extends(field, *setup, *event.setup);
      setup = event.setup.get();
    } else if (static_cast<std::size_t>(event.source) >= setup->sources.size()) {
      field["source"].fail("the index of a source, below " + std::to_string(setup->sources.size()));
    }
  }
  if (*setup != *state.tail.knot.setup) root["tail"]["setup"].fail("the setup of the last edit");
}

std::string shown(const Value& value) {
  struct Visitor {
    std::string operator()(std::monostate) const { return "None"; }
    std::string operator()(bool v) const { return v ? "True" : "False"; }
    std::string operator()(std::uint64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const {
      std::ostringstream out;
      out.imbue(std::locale::classic());
      out.precision(17);
      out << v;
      return out.str();
    }
    std::string operator()(const std::string& v) const { return v; }
    std::string operator()(const ValueList& v) const {
      std::string out = "[";
      for (const Value& item : v) out += (out.size() > 1 ? ", " : "") + shown(item);
      return out + "]";
    }
    std::string operator()(const ValueMap& v) const {
      std::string out = "{";
      for (const auto& [name, item] : v) out += (out.size() > 1 ? ", " : "") + name + ": " + shown(item);
      return out + "}";
    }
  };
  return std::visit(Visitor{}, value.data());
}

/// The configuration with its sources by name and in the order of their names, so that two can be compared.
ValueMap by_name(const Setup& setup, const std::set<std::string>& names) {
  const auto weights = [&](const std::vector<double>& values) {
    std::map<std::string, Value> sorted;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (names.contains(setup.sources[i].name)) sorted.emplace(setup.sources[i].name, values[i]);
    }
    return ValueMap(sorted.begin(), sorted.end());
  };
  const Value plain = to_value(setup.config);
  auto fields = std::get<ValueMap>(plain.data());
  for (auto& [name, value] : fields) {
    if (name == "dataloader_weights") value = weights(setup.config.weights);
    if (name == "alternating_pattern") {
      value = list_of(setup.config.pattern,
                      [&](std::int32_t entry) { return setup.sources[static_cast<std::size_t>(entry)].name; });
    }
    if (name == "weight_curve" && setup.config.curve) {
      const WeightCurve& curve = *setup.config.curve;
      ValueMap shown_curve{{"interpolation", curve.interpolation == Interpolation::step ? "STEP" : "LINEAR"},
                           {"every", curve.every}};
      for (const WeightCurve::Point& point : curve.points) {
        shown_curve.emplace_back(std::to_string(point.step), weights(point.weights));
      }
      value = shown_curve;
    }
  }
  return fields;
}

}  // namespace

Value to_value(const ScheduleState& state) {
  SetupTable setups;
  setups.index_of(state.initial);
  Value opening = to_value(state.opening, setups);
  Value tail = to_value(state.tail.knot, setups);
  ValueList events = list_of(state.events, [&](const Event& event) { return to_value(event, setups); });
  return ValueMap{{"format", "mtf.schedule"},
                  {"version", std::uint64_t{kScheduleVersion}},
                  {"seed", state.seed},
                  {"epoch", state.epoch},
                  {"step", state.step},
                  {"first_step", state.first_step},
                  {"counts", list_of(state.counts, [](std::uint64_t count) { return count; })},
                  {"setups", setups.values()},
                  {"opening", std::move(opening)},
                  {"events", std::move(events)},
                  {"tail", std::move(tail)},
                  {"tail_end", endless_or(state.tail.end)}};
}

ScheduleState schedule_state_from(const Value& value, std::uint32_t version) {
  const Field root(value, "state");
  if (root["format"].string() != "mtf.schedule") root["format"].fail("'mtf.schedule'");
  const Field written = root["version"];
  if (written.integer(~std::uint64_t{0}) > kScheduleVersion) {
    throw StateMismatch("the state has format version " + std::to_string(written.integer(~std::uint64_t{0})) +
                        ", this mtf reads 1 to " + std::to_string(kScheduleVersion) + "; a newer mtf wrote it");
  }
  if (written.integer(kScheduleVersion) != version)
    written.fail("the version in the header, " + std::to_string(version));
  ScheduleState state;
  state.seed = root["seed"].integer(~std::uint64_t{0});
  state.epoch = root["epoch"].integer(kMaxCount);
  state.step = root["step"].integer(kMaxCount);
  state.first_step = root["first_step"].integer(kMaxCount);
  state.counts = read_list<std::uint64_t>(root["counts"], [&](const Field& f) { return f.integer(state.step); });
  const auto setups = read_list<std::shared_ptr<const Setup>>(root["setups"], read_setup);
  if (setups.empty()) root["setups"].fail("a list with the initial setup first");
  state.initial = *setups.front();
  state.opening = read_knot(root["opening"], setups);
  if (state.opening.step != 0) root["opening"]["step"].fail("0");
  state.events = read_list<Event>(root["events"], [&](const Field& f) { return read_event(f, setups); });
  state.tail = {read_knot(root["tail"], setups), endless_or(root["tail_end"]), state.events.size()};
  if (state.tail.knot.step > state.step) root["tail"]["step"].fail("at most the step");
  if (state.tail.end < state.step) root["tail_end"].fail("at least the step");
  if (state.counts.size() != state.tail.knot.sources.size()) root["counts"].fail("a list with one count per source");
  for (std::size_t i = 0; i < state.counts.size(); ++i) {
    if (state.counts[i] < state.tail.knot.sources[i].count) {
      root["counts"].list()[i].fail("at least the count of the tail");
    }
  }
  check_sum(root["counts"], state.counts, state.step);
  check_log(root, state);
  return state;
}

std::vector<std::string> find_differences(std::uint64_t my_seed, const Setup& mine, const ScheduleState& other) {
  std::vector<std::string> found;
  const auto differ = [&](const std::string& field, const std::string& theirs, const std::string& ours) {
    found.push_back(field + ": " + theirs + " in the state, " + ours + " here");
  };
  if (other.seed != my_seed) differ("seed", std::to_string(other.seed), std::to_string(my_seed));
  std::map<std::string, std::uint64_t> my_lengths;
  std::map<std::string, std::uint64_t> their_lengths;
  std::set<std::string> known_later;
  for (const SourceSpec& source : mine.sources) my_lengths.emplace(source.name, source.length);
  for (const SourceSpec& source : other.initial.sources) their_lengths.emplace(source.name, source.length);
  for (const SourceSpec& source : other.tail.knot.setup->sources) known_later.insert(source.name);
  std::set<std::string> common;
  const auto length = [](std::uint64_t value) { return value == kEndless ? "unknown" : std::to_string(value); };
  for (const auto& [name, theirs] : their_lengths) {
    const auto ours = my_lengths.find(name);
    if (ours == my_lengths.end()) {
      found.push_back("dataloader_names: '" + name + "' is in the state, not here");
      continue;
    }
    common.insert(name);
    if (ours->second != theirs) differ("length of '" + name + "'", length(theirs), length(ours->second));
  }
  for (const auto& [name, ours] : my_lengths) {
    // A source that was added later may be there from the start in the script that resumes.
    if (!their_lengths.contains(name) && !known_later.contains(name)) {
      found.push_back("dataloader_names: '" + name + "' is here, not in the state");
    }
  }
  const ValueMap theirs = by_name(other.initial, common);
  const ValueMap ours = by_name(mine, common);
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    if (!(theirs[i].second == ours[i].second)) {
      differ(theirs[i].first, shown(theirs[i].second), shown(ours[i].second));
    }
  }
  return found;
}

std::map<std::string, std::uint64_t> find_fingerprints(const ScheduleState& state) {
  const auto hash = [](const Value& value) { return fold_in(Key{0}, encode("HASH", 1, value)).value; };
  SetupTable setups;
  Value opening = to_value(state.opening, setups);
  ValueList events = list_of(state.events, [&](const Event& event) { return to_value(event, setups); });
  const auto& sources = state.initial.sources;
  return {{"config", hash(to_value(state.initial.config))},
          {"names", hash(list_of(sources, [](const SourceSpec& source) { return source.name; }))},
          {"lengths", hash(list_of(sources, [](const SourceSpec& source) { return endless_or(source.length); }))},
          {"seed", hash(state.seed)},
          {"log", hash(ValueMap{{"epoch", state.epoch},
                                {"first_step", state.first_step},
                                {"opening", std::move(opening)},
                                {"events", std::move(events)},
                                {"setups", setups.values()}})}};
}

}  // namespace mtf
