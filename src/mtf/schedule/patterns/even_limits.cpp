// Slots that leave: where the intervals of EVEN's nodes begin when a slot is exhausted.
#include <algorithm>
#include <utility>

#include "mtf/schedule/patterns/even_tree.hpp"

namespace mtf {

void EvenTree::set_limits(std::span<const std::uint64_t> limits) {
  if (limits.empty()) {
    return;
  }
  is_limited_ = true;
  limits_.assign(limits.begin(), limits.end());
  length_ = 0;
  for (const std::uint64_t limit : limits) {
    length_ = add_steps(length_, limit);
  }
  place_deaths(limits);
}

/// Adds the intervals that begin when a slot is exhausted. What happens below a node depends only on the node's own
/// clock, so each node merges the deaths of its two children, in their clocks, into deaths in its own.
void EvenTree::place_deaths(std::span<const std::uint64_t> limits) {
  struct Death {
    std::uint64_t clock;
    std::uint32_t weight;
  };
  std::vector<std::vector<Death>> node_deaths(nodes_.size());
  const auto deaths_of = [&](Child child) -> std::vector<Death> {
    if (child >= 0) {
      return std::exchange(node_deaths[static_cast<std::size_t>(child)], {});
    }
    const std::uint64_t limit = limits[static_cast<std::size_t>(~child)];
    return limit >= kMaxSteps ? std::vector<Death>{} : std::vector<Death>{{limit, weight_of(child)}};
  };
  const std::vector<Interval> first_intervals = std::exchange(intervals_, {});
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::vector<Death> light_deaths = deaths_of(nodes_[i].light);
    const std::vector<Death> heavy_deaths = deaths_of(nodes_[i].heavy);
    std::vector<Death>& merged = node_deaths[i];
    merged.reserve(light_deaths.size() + heavy_deaths.size());
    const std::size_t first = intervals_.size();
    intervals_.push_back(first_intervals[i]);
    auto light = light_deaths.begin();
    auto heavy = heavy_deaths.begin();
    std::uint32_t weight = node_weights_[i];
    std::uint32_t light_weight = weight_of(nodes_[i].light);
    while (light != light_deaths.end() || heavy != heavy_deaths.end()) {
      const Interval interval = intervals_.back();
      const auto clock_of = [&interval](bool is_light, std::uint64_t count) {
        const std::uint64_t before = is_light ? interval.light : interval.clock - interval.light;
        return count <= before ? interval.clock : interval.reach(is_light, count);
      };
      const std::uint64_t light_clock = light == light_deaths.end() ? kUnbounded : clock_of(true, light->clock);
      const std::uint64_t heavy_clock = heavy == heavy_deaths.end() ? kUnbounded : clock_of(false, heavy->clock);
      const std::uint64_t clock = std::min(light_clock, heavy_clock);
      if (clock == kUnbounded) {
        break;
      }
      const bool is_light = light_clock <= heavy_clock;
      const std::uint32_t gone = is_light ? (light++)->weight : (heavy++)->weight;
      merged.push_back({clock, gone});
      weight -= gone;
      light_weight -= is_light ? gone : 0;
      const Interval::Distributed distributed = interval.distributed(clock);
      if (clock == interval.clock && intervals_.size() > first) {
        intervals_.pop_back();
      }
      // The remainder continues as the same part of the new weight: no rounding starts afresh.
      const auto phase = static_cast<std::uint32_t>(std::uint64_t{distributed.remainder} * weight / interval.weight);
      intervals_.emplace_back(clock, distributed.light, light_weight, std::max(weight, 1U), phase);
    }
    nodes_[i].first_interval = static_cast<std::uint32_t>(first);
    nodes_[i].num_intervals = static_cast<std::uint32_t>(intervals_.size() - first);
  }
}

}  // namespace mtf
