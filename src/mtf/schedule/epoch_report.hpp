/// What an epoch draws, counted: for plans and for tests of the published bounds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mtf/schedule/epoch.hpp"

namespace mtf {

struct SourceReport {
  std::uint64_t num_steps = 0;
  double expected = 0.0;       // WEIGHTED: sum over the steps of the weights' share
  double max_deviation = 0.0;  // WEIGHTED: largest distance, at any step, between what was drawn and expected
  PassPosition begin;          // where the source stands when the epoch begins
  PassPosition end;            // and when it ends
};

struct EpochReport {
  std::uint64_t num_steps = 0;
  double deviation_bound = 0.0;  // EVEN: certificate of all segments; 0 where none is published
  std::vector<SourceReport> sources;
};

/// `ranges`: all of an epoch's. Complexity: O(steps).
[[nodiscard]] EpochReport make_report(std::span<const Epoch::SegmentRange> ranges);

}  // namespace mtf
