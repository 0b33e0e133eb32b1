#include "mtf/schedule/state/event_fields.hpp"

#include "mtf/message.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/state/fields.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {

namespace {

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

}  // namespace

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

std::uint64_t hash_of(const Event& event) {
  SpecTable specs;
  const Value value = to_value(event, specs);
  return fold_in(Key{0}, encode("HASH", 1, ValueMap{{"event", value}, {"setups", specs.values()}})).value;
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

}  // namespace mtf
