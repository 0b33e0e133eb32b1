#include "mtf/schedule/state/differences.hpp"

#include <algorithm>
#include <locale>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <variant>

#include "mtf/message.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/state/breakpoint_fields.hpp"
#include "mtf/schedule/state/event_fields.hpp"
#include "mtf/schedule/state/fields.hpp"
#include "mtf/schedule/state/spec_fields.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {

namespace {

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
std::string cap_of(const MixtureSpec& spec, const SourceSpec& source) {
  if (!source.max_passes) {
    return "none";
  }
  const std::string then = spec.stops_when_spent ? "stop"
                           : source.heir         ? spec.sources[static_cast<std::size_t>(*source.heir)].name
                                                 : "others";
  return format_message("{}, then {}", *source.max_passes, then);
}

}  // namespace

std::vector<std::string> find_differences(std::uint64_t my_seed, const MixtureSpec& mine, const ScheduleState& other) {
  std::vector<std::string> found;
  const auto differ = [&](const std::string& field, const std::string& theirs, const std::string& ours) {
    found.push_back(format_message("{}: {} in the state, {} here", field, theirs, ours));
  };
  if (other.seed != my_seed) {
    differ("seed", std::to_string(other.seed), std::to_string(my_seed));
  }
  std::map<std::string, const SourceSpec*> my_sources;
  std::map<std::string, const SourceSpec*> their_sources;
  std::set<std::string> known_later;
  for (const SourceSpec& source : mine.sources) {
    my_sources.emplace(source.name, &source);
  }
  for (const SourceSpec& source : other.initial.sources) {
    their_sources.emplace(source.name, &source);
  }
  for (const SourceSpec& source : other.resume_point.breakpoint.spec->sources) {
    known_later.insert(source.name);
  }
  std::set<std::string> common;
  const auto length = [](std::optional<std::uint64_t> value) { return value ? std::to_string(*value) : "unknown"; };
  for (const auto& [name, theirs] : their_sources) {
    const auto ours = my_sources.find(name);
    if (ours == my_sources.end()) {
      found.push_back(format_message("dataloader_names: '{}' is in the state, not here", name));
      continue;
    }
    common.insert(name);
    const SourceSpec& mine_of_name = *ours->second;
    if (mine_of_name.length != theirs->length) {
      differ("length of '" + name + "'", length(theirs->length), length(mine_of_name.length));
    }
    if (const auto a = cap_of(other.initial, *theirs), b = cap_of(mine, mine_of_name); a != b) {
      differ("max_passes and when_spent of '" + name + "'", a, b);
    }
  }
  for (const auto& [name, source] : my_sources) {
    // A source that was added later may be there from the start in the script that resumes.
    if (!their_sources.contains(name) && !known_later.contains(name)) {
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
