#include "mtf/schedule/epoch_length.hpp"

#include <algorithm>

namespace mtf {

namespace {

std::uint64_t saturating_minus(std::uint64_t a, std::uint64_t b) noexcept { return a > b ? a - b : 0; }

/// The step of the epoch at which `slot` is drawn for the `index`-th time since the pattern began.
std::uint64_t step_of(const Breakpoint& breakpoint, const AnyPattern& pattern, std::size_t slot, std::uint64_t index) {
  const std::uint64_t position =
      std::visit([&](const auto& p) { return p.position(static_cast<std::int32_t>(slot), index); }, pattern);
  return add_steps(breakpoint.origin, position);
}

/// SUM_OF_LENGTHS: the active sources' lengths and what inactive ones already gave.
std::uint64_t sum_of_lengths(const Breakpoint& breakpoint, std::span<const std::int32_t> active) {
  std::vector<bool> is_active(breakpoint.sources.size());
  for (const std::int32_t source : active) {
    is_active[static_cast<std::size_t>(source)] = true;
  }
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < breakpoint.sources.size(); ++i) {
    sum = add_steps(sum, is_active[i] ? breakpoint.spec->sources[i].pass_limit() : breakpoint.sources[i].count);
  }
  return sum;
}

/// MAX_LENGTH: one step after the last of the sources has given its length for the first time.
std::uint64_t longest(const Breakpoint& breakpoint, std::span<const std::int32_t> active, const AnyPattern& pattern) {
  std::uint64_t end = breakpoint.step;
  for (std::size_t slot = 0; slot < active.size(); ++slot) {
    const auto source = static_cast<std::size_t>(active[slot]);
    const SourceState& state = breakpoint.sources[source];
    const std::uint64_t length = breakpoint.spec->sources[source].pass_limit();
    if (length == kUnbounded) {
      return kUnbounded;
    }
    if (state.count < length) {
      end = std::max(end, add_steps(step_of(breakpoint, pattern, slot, length - state.origin_count - 1), 1));
    }
  }
  return end;
}

/// The first demand for a source that has run out.
std::uint64_t first_demand(const Breakpoint& breakpoint, std::span<const std::int32_t> active,
                           const AnyPattern& pattern) {
  std::uint64_t end = kUnbounded;
  for (std::size_t slot = 0; slot < active.size(); ++slot) {
    const std::uint64_t limit = breakpoint.sources[static_cast<std::size_t>(active[slot])].limit;
    if (limit != kUnbounded) {
      end = std::min(end, step_of(breakpoint, pattern, slot, limit));
    }
  }
  return end;
}

}  // namespace

Blocks find_blocks(const Breakpoint& breakpoint, std::span<const std::int32_t> active) {
  const MixtureConfig& config = breakpoint.spec->config;
  const auto length = [&](std::int32_t source) {
    return breakpoint.spec->sources[static_cast<std::size_t>(source)].pass_limit();
  };
  std::uint64_t shortest = kUnbounded;
  std::uint64_t longest_length = 0;
  for (const std::int32_t source : active) {
    shortest = std::min(shortest, length(source));
    longest_length = std::max(longest_length, length(source));
  }
  Blocks blocks;
  for (const std::int32_t source : active) {
    const std::uint64_t block = config.policy == EpochPolicy::min_length                   ? shortest
                                : config.policy == EpochPolicy::max_length && config.cycle ? longest_length
                                                                                           : length(source);
    const SourceState& state = breakpoint.sources[static_cast<std::size_t>(source)];
    std::uint64_t rest = 0;
    if (state.round_count) {
      rest = block == kUnbounded ? kUnbounded : saturating_minus(block, *state.round_count);
    }
    if (config.drops_out()) {
      rest = std::min(rest, state.limit);
    }
    blocks.first.push_back(rest);
    blocks.later.push_back(block);
  }
  const bool has_rounds = config.policy == EpochPolicy::fixed_num_steps && config.cycle;
  if (!has_rounds) {
    blocks.later.clear();
  }
  return blocks;
}

void begin_round_if_due(Breakpoint& breakpoint, std::span<const std::int32_t> active) {
  const Blocks blocks = find_blocks(breakpoint, active);
  const bool is_done = std::ranges::all_of(blocks.first, [](std::uint64_t block) { return block == 0; });
  if (!is_done || blocks.later.empty()) {
    return;
  }
  for (SourceState& state : breakpoint.sources) {
    state.round_count = 0;
  }
}

std::uint64_t find_epoch_end(const Breakpoint& breakpoint, std::span<const std::int32_t> active,
                             const AnyPattern* pattern) {
  if (breakpoint.ended || pattern == nullptr) {
    return breakpoint.step;
  }
  const MixtureConfig& config = breakpoint.spec->config;
  const std::uint64_t length =
      add_steps(breakpoint.origin, std::visit([](const auto& p) { return p.length(); }, *pattern));
  std::uint64_t end = length;
  switch (config.policy) {
    case EpochPolicy::fixed_num_steps:
      end = std::min(end, static_cast<std::uint64_t>(*config.steps_per_epoch));
      break;
    case EpochPolicy::min_length:
      end = std::min(end, first_demand(breakpoint, active, *pattern));
      break;
    case EpochPolicy::sum_of_lengths:
      if (config.cycle) {
        end = std::min(end, sum_of_lengths(breakpoint, active));
      }
      break;
    case EpochPolicy::max_length:
      if (config.cycle && config.strategy != Strategy::sequential) {
        end = std::min(end, longest(breakpoint, active, *pattern));
      }
      break;
  }
  return std::max(end, breakpoint.step);
}

}  // namespace mtf
