/// What happened to the schedule of an epoch, in order: edits, and passes that ended elsewhere than their length says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "mtf/schedule/enum_names.hpp"
#include "mtf/schedule/mixture_spec.hpp"

namespace mtf {

/// A source whose pass under way has another number of batches left than its length says: it began before an edit.
struct RestLength {
  std::int32_t source = 0;
  std::uint64_t num_batches = 0;

  friend bool operator==(const RestLength&, const RestLength&) = default;
};

/// Something that happened at a step, before the draw of that step.
struct Event {
  std::uint64_t step = 0;
  EventKind kind = EventKind::edit;
  std::shared_ptr<const MixtureSpec> spec;  // edit: the spec from here on
  std::int32_t source = 0;                  // end_pass, extend_pass
  std::uint64_t num_batches = 0;            // end_pass, extend_pass
  std::vector<RestLength> rests{};          // edit
};
[[nodiscard]] bool operator==(const Event& a, const Event& b);

/// The oldest events may be missing: the log knows how many they were and a hash of them, so that it needs bounded
/// memory, and logs can still be compared.
class EventLog {
 public:
  EventLog() = default;
  explicit EventLog(std::vector<Event> events);
  /// A log of which only the number of events and their hash are known.
  EventLog(std::uint64_t num_events, std::uint64_t hash) : num_dropped_(num_events), hash_dropped_(hash) {}

  /// Number of events, missing ones included.
  [[nodiscard]] std::uint64_t size() const noexcept { return num_dropped_ + events_.size(); }
  [[nodiscard]] std::uint64_t num_dropped() const noexcept { return num_dropped_; }
  [[nodiscard]] bool is_whole() const noexcept { return num_dropped_ == 0; }
  /// The events that aren't missing.
  [[nodiscard]] const std::vector<Event>& events() const noexcept { return events_; }
  /// Event number `index`, at least num_dropped().
  [[nodiscard]] const Event& operator[](std::uint64_t index) const { return events_[index - num_dropped_]; }
  /// A hash of all events, in order.
  [[nodiscard]] std::uint64_t hash() const noexcept { return hashes_.empty() ? hash_dropped_ : hashes_.back(); }

  void push_back(Event event);
  /// The log up to and including `step`, which must not lie before a missing event.
  [[nodiscard]] EventLog until(std::uint64_t step) const;
  /// The same in bounded memory: without any event where these cost more than `most`, or some are missing.
  [[nodiscard]] EventLog summary_until(std::uint64_t step, std::uint64_t most) const;
  /// What an event costs in a state: 16 for an edit, which has a mixture of its own, 1 for others.
  [[nodiscard]] static std::uint64_t cost(const Event& event) noexcept {
    return event.kind == EventKind::edit ? 16 : 1;
  }
  /// The first `num_events` events of a whole log.
  [[nodiscard]] EventLog first(std::uint64_t num_events) const;
  /// Forgets all but the last `num_kept` events.
  void drop_all_but(std::uint64_t num_kept);

 private:
  /// How many of `events_` happened at `step` or before.
  [[nodiscard]] std::uint64_t count_until(std::uint64_t step) const;

  std::uint64_t num_dropped_ = 0;
  std::uint64_t hash_dropped_ = 0;
  std::vector<Event> events_;
  std::vector<std::uint64_t> hashes_;  // of all events up to each of `events_`
};

}  // namespace mtf
