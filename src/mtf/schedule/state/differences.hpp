/// Two states compared: what must agree for one to be loaded, in words, and hashes of what ranks must agree on.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mtf/schedule/mixture_spec.hpp"
#include "mtf/schedule/state.hpp"

namespace mtf {

/// Where `other` differs from `mine` in what must agree for a state to be loaded: seed, names, lengths and the initial
/// configuration, compared by source name. One sentence per field; empty when they agree.
[[nodiscard]] std::vector<std::string> find_differences(std::uint64_t my_seed, const MixtureSpec& mine,
                                                        const ScheduleState& other);

/// Hashes of what ranks must agree on, by field: config, names, lengths, seed, log (which doesn't depend on the step).
[[nodiscard]] std::map<std::string, std::uint64_t> find_fingerprints(const ScheduleState& state);

}  // namespace mtf
