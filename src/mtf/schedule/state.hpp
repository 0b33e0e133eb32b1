/// All that a schedule is at one position: a handful of named integers, independent of how far it has come.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "mtf/schedule/epoch.hpp"
#include "mtf/state/value.hpp"

namespace mtf {

inline constexpr std::string_view kScheduleKind = "SCHD";
inline constexpr std::uint32_t kScheduleVersion = 1;

struct ScheduleState {
  std::uint64_t seed = 0;
  MixtureSpec initial;  // as configured, before any edit
  std::uint64_t epoch = 0;
  std::uint64_t first_step = 0;     // batches drawn in training before the epoch
  Breakpoint opening;               // of the epoch
  std::vector<Event> events;        // of the epoch, up to the position
  Epoch::ResumePoint resume_point;  // the segment in force at the position
  std::uint64_t step = 0;
  std::vector<std::uint64_t> counts;  // draws of each source in [0, step) of the epoch
};

[[nodiscard]] Value to_value(const ScheduleState& state);

/// Throws StateMismatch naming the field for anything that no schedule could have written.
[[nodiscard]] ScheduleState schedule_state_from(const Value& value, std::uint32_t version);

/// Where `other` differs from `mine` in what must agree for a state to be loaded: seed, names, lengths and the initial
/// configuration, compared by source name. One sentence per field; empty when they agree.
[[nodiscard]] std::vector<std::string> find_differences(std::uint64_t my_seed, const MixtureSpec& mine,
                                                        const ScheduleState& other);

/// Hashes of what ranks must agree on, by field: config, names, lengths, seed, log (which doesn't depend on the step).
[[nodiscard]] std::map<std::string, std::uint64_t> find_fingerprints(const ScheduleState& state);

}  // namespace mtf
