/// Breakpoints in a state: its `opening` and its `tail`, one column per property of the sources.
#pragma once

#include <cstdint>
#include <vector>

#include "mtf/schedule/segment.hpp"
#include "mtf/schedule/state/spec_fields.hpp"
#include "mtf/state/value.hpp"

namespace mtf {

[[nodiscard]] Value to_value(const Breakpoint& breakpoint, SpecTable& specs);

/// Throws StateMismatch, naming the field, for a breakpoint that no schedule could have.
[[nodiscard]] Breakpoint read_breakpoint(const Field& field, const Specs& specs, std::uint32_t version);

/// Throws StateMismatch unless the draws of all sources add up to the steps.
void check_sum(const Field& field, const std::vector<std::uint64_t>& counts, std::uint64_t step);

}  // namespace mtf
