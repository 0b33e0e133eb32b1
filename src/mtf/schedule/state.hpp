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
/// The newest format. A schedule whose state is of format 1 writes format 1: under it a change of weights starts EVEN
/// and SHUFFLED afresh, and a run that was resumed continues as it would have.
/// Format 3 is written where a source has a largest number of passes.
inline constexpr std::uint32_t kScheduleVersion = 3;

/// A state of format 2 holds the events of its epoch as long as they cost at most this much (EventLog::cost), and else
/// only their number and a hash: its size doesn't grow with edits. What was drawn before its resume point is then out
/// of reach.
inline constexpr std::uint64_t kMaxLoggedCost = 256;

struct ScheduleState {
  std::uint64_t seed = 0;
  MixtureSpec initial;  // as configured, before any edit but those of a resume with another configuration
  std::uint64_t epoch = 0;
  std::uint64_t first_step = 0;     // batches drawn in training before the epoch
  Breakpoint opening;               // of the epoch
  EventLog log;                     // of the epoch, up to the position
  Epoch::ResumePoint resume_point;  // the segment in force at the position
  std::uint64_t step = 0;
  std::vector<std::uint64_t> counts;  // draws of each source in [0, step) of the epoch
};

/// The format that a state is written in.
[[nodiscard]] std::uint32_t version_of(const ScheduleState& state) noexcept;

[[nodiscard]] Value to_value(const ScheduleState& state);

/// A setup of a state. Throws StateMismatch, naming the field, for one that no schedule could have.
[[nodiscard]] MixtureSpec mixture_spec_from(const Value& value);

/// `header_version`: of the bytes that held the value, if it was in bytes. Throws StateMismatch naming the field for
/// anything that no schedule could have written.
[[nodiscard]] ScheduleState schedule_state_from(const Value& value,
                                                std::optional<std::uint32_t> header_version = std::nullopt);

}  // namespace mtf
