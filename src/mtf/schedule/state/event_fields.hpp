/// Events in a state: the log of its epoch, or where that is long, its size and hash.
#pragma once

#include <cstdint>

#include "mtf/schedule/event_log.hpp"
#include "mtf/schedule/state/spec_fields.hpp"
#include "mtf/state/value.hpp"

namespace mtf {

[[nodiscard]] Value to_value(const Event& event, SpecTable& specs);

/// Depends on all that an event says.
[[nodiscard]] std::uint64_t hash_of(const Event& event);

/// The log of a state with the fields `events`, `num_events` and `log_hash`. Throws StateMismatch where they disagree.
[[nodiscard]] EventLog read_log(const Field& root, const Specs& specs, std::uint32_t version);

}  // namespace mtf
