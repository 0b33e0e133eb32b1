#include "mtf/schedule/state.hpp"

#include <algorithm>
#include <set>
#include <string_view>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/state/breakpoint_fields.hpp"
#include "mtf/schedule/state/event_fields.hpp"
#include "mtf/schedule/state/fields.hpp"
#include "mtf/schedule/state/spec_fields.hpp"

namespace mtf {

namespace {

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
  std::set<std::string_view> names;
  for (const SourceSpec& source : now.sources) {
    names.insert(source.name);
  }
  for (const SourceSpec& source : declared.sources) {
    if (!names.contains(source.name)) {
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

}  // namespace

Value to_value(const ScheduleState& state) {
  SpecTable specs;
  static_cast<void>(specs.index_of(state.initial));  // the first of the table
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

}  // namespace mtf
