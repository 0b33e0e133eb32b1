/// Weights as a function of the step: points (step, weights), held or joined by straight lines between them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mtf/schedule/enum_names.hpp"

namespace mtf {

/// Steps count batches since the beginning of training. The first point's weights hold before it, the last one's after.
struct WeightCurve {
  struct Point {
    std::uint64_t step = 0;
    std::vector<double> weights;  // one per source

    friend bool operator==(const Point&, const Point&) = default;
  };

  std::vector<Point> points;
  Interpolation interpolation = Interpolation::step;
  std::uint64_t every = 100;  // linear: steps for which the weights are held

  /// The weights in force at `step`: constant over [m * every, (m + 1) * every) where the curve is linear.
  [[nodiscard]] std::vector<double> at(std::uint64_t step) const;

  /// The first step after `step` whose weights may differ; kUnbounded when there is none.
  [[nodiscard]] std::uint64_t next_change(std::uint64_t step) const;

  /// The curve that begins at `step` with `weights` and continues from there as this one does, in proportion: what a
  /// source weighs later is multiplied by its weight in `weights` over the one that this curve gives it at `step`. A
  /// source to which this curve gives no weight at `step` gets its weight in `weights` added to later ones.
  [[nodiscard]] WeightCurve rebased(std::uint64_t step, std::span<const double> weights) const;

  friend bool operator==(const WeightCurve&, const WeightCurve&) = default;
};

/// Throws ConfigError naming the point, the source and the value that breaks a rule.
void validate(const WeightCurve& curve, std::size_t num_sources);

}  // namespace mtf
