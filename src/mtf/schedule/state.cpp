#include "mtf/schedule/state.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <sstream>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {

namespace {

constexpr std::uint64_t kMaxCount = kMaxSteps - 1;
constexpr const char* kDeficitName = "owed";  // as version 2 stores it
constexpr std::uint64_t kMaxIndex = (std::uint64_t{1} << 31) - 1;

// Natural numbers that have no bound, or aren't known, are None.
Value unbounded_or(std::uint64_t value) { return value == kUnbounded ? Value() : Value(value); }
Value unbounded_or(std::optional<std::uint64_t> value) { return value ? Value(*value) : Value(); }
std::optional<std::uint64_t> known_or_none(const Field& field) {
  return field.is_none() ? std::nullopt : std::optional(field.integer(kMaxCount));
}
std::uint64_t unbounded_or(const Field& field) { return field.is_none() ? kUnbounded : field.integer(kMaxCount); }

template <class Range, class Make>
ValueList list_of(const Range& range, Make make) {
  ValueList out;
  out.reserve(std::size(range));
  for (const auto& item : range) {
    out.emplace_back(make(item));
  }
  return out;
}

template <class T, class Read>
std::vector<T> read_list(const Field& field, Read read) {
  std::vector<T> out;
  for (const Field& item : field.list()) {
    out.push_back(read(item));
  }
  return out;
}

template <NamedEnum Enum>
Enum read_enum(const Field& field) {
  if (const std::optional<Enum> member = find_member<Enum>(field.string())) {
    return *member;
  }
  field.fail(format_message("one of {}", list_names<Enum>()));
}

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

/// Largest numbers of passes, and what happens after them.
ValueMap to_value_of_caps(const MixtureSpec& spec) {
  return {{"stop", spec.stops_when_spent},
          {"max_passes", list_of(spec.sources, [](const SourceSpec& s) { return unbounded_or(s.max_passes); })},
          {"heir",
           list_of(spec.sources,
                   [](const SourceSpec& s) { return s.heir ? Value(static_cast<std::uint64_t>(*s.heir)) : Value(); })},
          {"per_draw", list_of(spec.sources, [](const SourceSpec& s) { return s.per_draw; })}};
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

/// The specs of a state, each once; breakpoints and events refer to them by index.
class SpecTable {
 public:
  std::uint64_t index_of(const MixtureSpec& spec) {
    for (std::size_t i = 0; i < specs_.size(); ++i) {
      if (specs_[i] == &spec || *specs_[i] == spec) {
        return i;
      }
    }
    specs_.push_back(&spec);
    return specs_.size() - 1;
  }
  [[nodiscard]] ValueList values() const {
    return list_of(specs_, [](const MixtureSpec* spec) { return to_value(*spec); });
  }

 private:
  std::vector<const MixtureSpec*> specs_;
};

using Specs = std::vector<std::shared_ptr<const MixtureSpec>>;

std::shared_ptr<const MixtureSpec> read_spec_index(const Field& field, const Specs& specs) {
  return specs[field.integer(specs.size() - 1)];
}

// Signed numbers as natural ones: 0, -1, 1, -2, 2 ... are 0, 1, 2, 3, 4 ...
std::uint64_t zigzag(std::int64_t value) {
  return (static_cast<std::uint64_t>(value) << 1) ^ static_cast<std::uint64_t>(value >> 63);
}
std::int64_t unzigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

Value to_value(const Breakpoint& breakpoint, SpecTable& specs) {
  const auto each = [&](auto get) { return list_of(breakpoint.sources, get); };
  ValueMap fields{{"step", breakpoint.step},
                  {"origin", breakpoint.origin},
                  {"ended", breakpoint.ended},
                  {"setup", specs.index_of(*breakpoint.spec)},
                  {"pass", each([](const SourceState& s) { return s.position.pass; })},
                  {"batch", each([](const SourceState& s) { return s.position.batch; })},
                  {"count", each([](const SourceState& s) { return s.count; })},
                  {"origin_count", each([](const SourceState& s) { return s.origin_count; })},
                  {"limit", each([](const SourceState& s) { return unbounded_or(s.limit); })},
                  {"round_count", each([](const SourceState& s) { return unbounded_or(s.round_count); })},
                  {"spent", each([](const SourceState& s) { return s.exhausted; })}};
  if (breakpoint.carries) {
    fields.emplace_back("continues", breakpoint.continues);
    fields.emplace_back("num_in_block", std::uint64_t{breakpoint.num_in_block});
    fields.emplace_back(kDeficitName, each([](const SourceState& s) { return zigzag(s.deficit); }));
  }
  return fields;
}

/// Draws of all sources add up to the steps.
void check_sum(const Field& field, const std::vector<std::uint64_t>& counts, std::uint64_t step) {
  const std::uint64_t sum = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}, add_steps);
  if (sum != step) {
    field.fail(format_message("draws that add up to the step ({})", step));
  }
}

Breakpoint read_breakpoint(const Field& field, const Specs& specs, std::uint32_t version) {
  Breakpoint breakpoint;
  breakpoint.step = field["step"].integer(kMaxCount);
  breakpoint.origin = field["origin"].integer(breakpoint.step);
  breakpoint.ended = field["ended"].boolean();
  breakpoint.spec = read_spec_index(field["setup"], specs);
  const std::size_t num_sources = breakpoint.spec->sources.size();
  breakpoint.sources.resize(num_sources);
  const auto each = [&](std::string_view name, auto set) {
    const Field column = field[name];
    const std::vector<Field> items = column.list();
    if (items.size() != num_sources) {
      column.fail(format_message("a list of {}, one per source", num_sources));
    }
    for (std::size_t i = 0; i < num_sources; ++i) {
      set(i, items[i]);
    }
  };
  std::vector<std::uint64_t> counts(num_sources);
  std::vector<std::uint64_t> origin_counts(num_sources);
  each("pass", [&](std::size_t i, const Field& f) { breakpoint.sources[i].position.pass = f.integer(kMaxCount); });
  each("batch", [&](std::size_t i, const Field& f) {
    breakpoint.sources[i].position.batch = f.integer(std::min(kMaxCount, breakpoint.spec->sources[i].pass_limit()));
  });
  each("count",
       [&](std::size_t i, const Field& f) { counts[i] = breakpoint.sources[i].count = f.integer(breakpoint.step); });
  each("origin_count", [&](std::size_t i, const Field& f) {
    origin_counts[i] = breakpoint.sources[i].origin_count = f.integer(breakpoint.sources[i].count);
  });
  each("limit", [&](std::size_t i, const Field& f) { breakpoint.sources[i].limit = unbounded_or(f); });
  each("round_count", [&](std::size_t i, const Field& f) { breakpoint.sources[i].round_count = known_or_none(f); });
  each("spent", [&](std::size_t i, const Field& f) { breakpoint.sources[i].exhausted = f.boolean(); });
  breakpoint.carries = version >= 2;
  if (breakpoint.carries) {
    breakpoint.continues = field["continues"].boolean();
    breakpoint.num_in_block = static_cast<std::uint32_t>(field["num_in_block"].integer(ShuffledBlocks::kBlockSize - 1));
    each(kDeficitName, [&](std::size_t i, const Field& f) {
      breakpoint.sources[i].deficit = unzigzag(f.integer(zigzag(kMaxDeficit)));
    });
  }
  check_sum(field["count"], counts, breakpoint.step);
  check_sum(field["origin_count"], origin_counts, breakpoint.origin);
  return breakpoint;
}

Value to_value(const Event& event, SpecTable& specs) {
  ValueMap out{{"step", event.step}, {"kind", std::string(name_of(event.kind))}};
  if (event.kind == EventKind::edit) {
    out.emplace_back("setup", specs.index_of(*event.spec));
    if (!event.rests.empty()) {
      out.emplace_back("rests", list_of(event.rests, [](const RestLength& rest) {
                         return ValueMap{{"source", static_cast<std::uint64_t>(rest.source)},
                                         {"num_batches", rest.num_batches}};
                       }));
    }
  } else {
    out.emplace_back("source", static_cast<std::uint64_t>(event.source));
    out.emplace_back("num_batches", event.num_batches);
  }
  return out;
}

Event read_event(const Field& field, const Specs& specs) {
  Event event;
  event.step = field["step"].integer(kMaxCount);
  event.kind = read_enum<EventKind>(field["kind"]);
  if (event.kind == EventKind::edit) {
    event.spec = read_spec_index(field["setup"], specs);
    if (field.has("rests")) {
      event.rests = read_list<RestLength>(field["rests"], [&](const Field& rest) {
        const std::uint64_t source = rest["source"].integer(event.spec->sources.size() - 1);
        const std::uint64_t length = event.spec->sources[source].length.value_or(0);
        return RestLength{static_cast<std::int32_t>(source), rest["num_batches"].integer(length)};
      });
    }
    return event;
  }
  event.source = static_cast<std::int32_t>(field["source"].integer(kMaxIndex));
  event.num_batches = field["num_batches"].integer(kMaxCount);
  return event;
}

EventLog read_log(const Field& root, const Specs& specs, std::uint32_t version) {
  EventLog log(read_list<Event>(root["events"], [&](const Field& f) { return read_event(f, specs); }));
  if (version < 2) {
    return log;
  }
  const Field num_events = root["num_events"];
  const std::uint64_t num = num_events.integer(kMaxCount);
  const Field hash = root["log_hash"];
  if (num > 0 && log.size() == 0) {
    return {num, hash.integer(~std::uint64_t{0})};
  }
  if (num != log.size()) {
    num_events.fail(format_message("the number of events ({})", log.size()));
  }
  if (hash.integer(~std::uint64_t{0}) != log.hash()) {
    hash.fail("the hash of the events");
  }
  return log;
}

/// Sources are only ever added at the end: every later spec names the earlier one's sources in the same order.
void check_extends(const Field& field, const MixtureSpec& before, const MixtureSpec& after) {
  const auto& a = before.sources;
  const auto& b = after.sources;
  const bool extends =
      b.size() >= a.size() &&
      std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) { return x.name == y.name; });
  if (!extends) {
    throw StateMismatch(format_message("{} does not contain the sources of the setup before it", field.path()));
  }
}

/// The initial setup is what a configuration is compared with. After an edit at a resume it is the edited one, whose
/// sources may have another order.
void check_declared(const Field& field, const MixtureSpec& declared, const MixtureSpec& now) {
  for (const SourceSpec& source : declared.sources) {
    if (std::ranges::find(now.sources, source.name, &SourceSpec::name) == now.sources.end()) {
      throw StateMismatch(
          format_message("{} has a source '{}' that the setup in force hasn't", field.path(), source.name));
    }
  }
}

void check_log(const Field& root, const ScheduleState& state) {
  const MixtureSpec* spec = state.opening.spec.get();
  check_declared(root["setups"].list().front(), state.initial, *state.resume_point.breakpoint.spec);
  std::uint64_t step = 0;
  const std::vector<Event>& events = state.log.events();
  for (std::size_t i = 0; i < events.size(); ++i) {
    const Event& event = events[i];
    const Field field = root["events"].list()[i];
    if (event.step < step || event.step > state.step) {
      field["step"].fail(format_message("in [{}, {}]", step, state.step));
    }
    step = event.step;
    if (event.spec) {
      check_extends(field, *spec, *event.spec);
      spec = event.spec.get();
    } else if (static_cast<std::size_t>(event.source) >= spec->sources.size()) {
      field["source"].fail(format_message("the index of a source, below {}", spec->sources.size()));
    }
  }
  check_extends(root["tail"], *spec, *state.resume_point.breakpoint.spec);
  if (state.log.is_whole() && *spec != *state.resume_point.breakpoint.spec) {
    root["tail"]["setup"].fail("the setup of the last edit");
  }
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
      for (const Value& item : v) {
        out += (out.size() > 1 ? ", " : "") + shown(item);
      }
      return out + "]";
    }
    std::string operator()(const ValueMap& v) const {
      std::string out = "{";
      for (const auto& [name, item] : v) {
        out += (out.size() > 1 ? ", " : "") + name + ": " + shown(item);
      }
      return out + "}";
    }
  };
  return std::visit(Visitor{}, value.data());
}

/// The configuration with its sources by name and in the order of their names, so that two can be compared.
ValueMap by_name(const MixtureSpec& spec, const std::set<std::string>& names) {
  const auto weights = [&](const std::vector<double>& values) {
    std::map<std::string, Value> sorted;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (names.contains(spec.sources[i].name)) {
        sorted.emplace(spec.sources[i].name, values[i]);
      }
    }
    return ValueMap(sorted.begin(), sorted.end());
  };
  const Value plain = to_value(spec.config);
  auto fields = std::get<ValueMap>(plain.data());
  for (auto& [name, value] : fields) {
    if (name == "dataloader_weights") {
      value = weights(spec.config.weights);
    }
    if (name == "alternating_pattern") {
      value = list_of(spec.config.pattern,
                      [&](std::int32_t entry) { return spec.sources[static_cast<std::size_t>(entry)].name; });
    }
    if (name == "weight_curve" && spec.config.curve) {
      const WeightCurve& curve = *spec.config.curve;
      ValueMap shown_curve{{"interpolation", std::string(name_of(curve.interpolation))}, {"every", curve.every}};
      for (const WeightCurve::Point& point : curve.points) {
        shown_curve.emplace_back(std::to_string(point.step), weights(point.weights));
      }
      value = shown_curve;
    }
  }
  return fields;
}

/// What a source's cap is, in words, so that two can be compared.
std::string cap_of(const MixtureSpec& spec, const std::string& name) {
  const SourceSpec& source = *std::ranges::find(spec.sources, name, &SourceSpec::name);
  if (!source.max_passes) {
    return "none";
  }
  const std::string then = spec.stops_when_spent ? "stop"
                           : source.heir         ? spec.sources[static_cast<std::size_t>(*source.heir)].name
                                                 : "others";
  return format_message("{}, then {}", *source.max_passes, then);
}

}  // namespace

Value to_value(const ScheduleState& state) {
  SpecTable specs;
  specs.index_of(state.initial);
  Value opening = to_value(state.opening, specs);
  Value resume_point = to_value(state.resume_point.breakpoint, specs);
  ValueList events = list_of(state.log.events(), [&](const Event& event) { return to_value(event, specs); });
  ValueMap fields{{"format", "mtf.schedule"},
                  {"version", std::uint64_t{version_of(state)}},
                  {"seed", state.seed},
                  {"epoch", state.epoch},
                  {"step", state.step},
                  {"first_step", state.first_step},
                  {"counts", list_of(state.counts, [](std::uint64_t count) { return count; })},
                  {"setups", specs.values()},
                  {"opening", std::move(opening)},
                  {"events", std::move(events)},
                  {"tail", std::move(resume_point)},
                  {"tail_end", unbounded_or(state.resume_point.end)}};
  if (version_of(state) >= 2) {
    fields.emplace_back("num_events", state.log.size());
    fields.emplace_back("log_hash", state.log.hash());
  }
  if (version_of(state) >= 3) {
    fields.emplace_back("tail_change", unbounded_or(state.resume_point.change));
  }
  return fields;
}

MixtureSpec mixture_spec_from(const Value& value) { return *read_spec(Field(value, "setup")); }

std::uint32_t version_of(const ScheduleState& state) noexcept {
  if (!state.opening.carries) {
    return 1;
  }
  // Later specs have the sources of earlier ones; an event in between may have had a cap that was lifted.
  const auto is_capped = [](const Event& event) { return event.spec && event.spec->is_capped(); };
  const bool any = state.initial.is_capped() || state.opening.spec->is_capped() ||
                   state.resume_point.breakpoint.spec->is_capped() ||
                   std::ranges::any_of(state.log.events(), is_capped);
  return any ? 3 : 2;
}

std::uint64_t hash_of(const Event& event) {
  SpecTable specs;
  const Value value = to_value(event, specs);
  return fold_in(Key{0}, encode("HASH", 1, ValueMap{{"event", value}, {"setups", specs.values()}})).value;
}

ScheduleState schedule_state_from(const Value& value, std::optional<std::uint32_t> header_version) {
  const Field root(value, "state");
  if (root["format"].string() != "mtf.schedule") {
    root["format"].fail("'mtf.schedule'");
  }
  const Field written = root["version"];
  if (written.integer(~std::uint64_t{0}) > kScheduleVersion) {
    throw StateMismatch(format_message("the state has format version {}, this mtf reads 1 to {}; a newer mtf wrote it",
                                       written.integer(~std::uint64_t{0}), kScheduleVersion));
  }
  const auto version = static_cast<std::uint32_t>(written.integer(kScheduleVersion));
  if (header_version && version != *header_version) {
    written.fail(format_message("the version in the header, {}", *header_version));
  }
  ScheduleState state;
  state.seed = root["seed"].integer(~std::uint64_t{0});
  state.epoch = root["epoch"].integer(kMaxCount);
  state.step = root["step"].integer(kMaxCount);
  state.first_step = root["first_step"].integer(kMaxCount);
  state.counts = read_list<std::uint64_t>(root["counts"], [&](const Field& f) { return f.integer(state.step); });
  const auto specs = read_list<std::shared_ptr<const MixtureSpec>>(root["setups"], read_spec);
  if (specs.empty()) {
    root["setups"].fail("a list with the initial setup first");
  }
  state.initial = *specs.front();
  state.opening = read_breakpoint(root["opening"], specs, version);
  if (state.opening.step != 0) {
    root["opening"]["step"].fail("0");
  }
  state.log = read_log(root, specs, version);
  state.resume_point = {read_breakpoint(root["tail"], specs, version), unbounded_or(root["tail_end"]), state.log.size(),
                        version < 3 ? kUnbounded : unbounded_or(root["tail_change"])};
  if (state.resume_point.breakpoint.step > state.step) {
    root["tail"]["step"].fail("at most the step");
  }
  if (state.resume_point.end < state.step) {
    root["tail_end"].fail("at least the step");
  }
  if (state.counts.size() != state.resume_point.breakpoint.sources.size()) {
    root["counts"].fail("a list with one count per source");
  }
  for (std::size_t i = 0; i < state.counts.size(); ++i) {
    if (state.counts[i] < state.resume_point.breakpoint.sources[i].count) {
      root["counts"].list()[i].fail("at least the count of the tail");
    }
  }
  check_sum(root["counts"], state.counts, state.step);
  check_log(root, state);
  return state;
}

std::vector<std::string> find_differences(std::uint64_t my_seed, const MixtureSpec& mine, const ScheduleState& other) {
  std::vector<std::string> found;
  const auto differ = [&](const std::string& field, const std::string& theirs, const std::string& ours) {
    found.push_back(format_message("{}: {} in the state, {} here", field, theirs, ours));
  };
  if (other.seed != my_seed) {
    differ("seed", std::to_string(other.seed), std::to_string(my_seed));
  }
  std::map<std::string, std::optional<std::uint64_t>> my_lengths;
  std::map<std::string, std::optional<std::uint64_t>> their_lengths;
  std::set<std::string> known_later;
  for (const SourceSpec& source : mine.sources) {
    my_lengths.emplace(source.name, source.length);
  }
  for (const SourceSpec& source : other.initial.sources) {
    their_lengths.emplace(source.name, source.length);
  }
  for (const SourceSpec& source : other.resume_point.breakpoint.spec->sources) {
    known_later.insert(source.name);
  }
  std::set<std::string> common;
  const auto length = [](std::optional<std::uint64_t> value) { return value ? std::to_string(*value) : "unknown"; };
  for (const auto& [name, theirs] : their_lengths) {
    const auto ours = my_lengths.find(name);
    if (ours == my_lengths.end()) {
      found.push_back(format_message("dataloader_names: '{}' is in the state, not here", name));
      continue;
    }
    common.insert(name);
    if (ours->second != theirs) {
      differ("length of '" + name + "'", length(theirs), length(ours->second));
    }
    if (const auto a = cap_of(other.initial, name), b = cap_of(mine, name); a != b) {
      differ("max_passes and when_spent of '" + name + "'", a, b);
    }
  }
  for (const auto& [name, ours] : my_lengths) {
    // A source that was added later may be there from the start in the script that resumes.
    if (!their_lengths.contains(name) && !known_later.contains(name)) {
      found.push_back(format_message("dataloader_names: '{}' is here, not in the state", name));
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
  SpecTable specs;
  Value opening = to_value(state.opening, specs);
  Value events = state.log.hash();
  if (!state.opening.carries) {
    events = list_of(state.log.events(), [&](const Event& event) { return to_value(event, specs); });
  }
  const auto& sources = state.initial.sources;
  std::map<std::string, std::uint64_t> found{
      {"config", hash(to_value(state.initial.config))},
      {"names", hash(list_of(sources, [](const SourceSpec& source) { return source.name; }))},
      {"lengths", hash(list_of(sources, [](const SourceSpec& source) { return unbounded_or(source.length); }))},
      {"seed", hash(state.seed)},
      {"log", hash(ValueMap{{"epoch", state.epoch},
                            {"first_step", state.first_step},
                            {"opening", std::move(opening)},
                            {"events", std::move(events)},
                            {"setups", specs.values()}})}};
  if (state.initial.is_capped()) {
    found.emplace("max_passes", hash(to_value_of_caps(state.initial)));
  }
  return found;
}

}  // namespace mtf
