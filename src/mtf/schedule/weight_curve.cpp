#include "mtf/schedule/weight_curve.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/pattern.hpp"

namespace mtf {

namespace {

/// Number of points at or before `step`.
std::size_t num_reached(const std::vector<WeightCurve::Point>& points, std::uint64_t step) {
  const auto after = std::ranges::upper_bound(points, step, {}, &WeightCurve::Point::step);
  return static_cast<std::size_t>(after - points.begin());
}

}  // namespace

std::vector<double> WeightCurve::at(std::uint64_t step) const {
  const std::uint64_t held = interpolation == Interpolation::linear ? step / every * every : step;
  const std::size_t reached = num_reached(points, held);
  if (reached == 0) {
    return points.front().weights;
  }
  const Point& from = points[reached - 1];
  if (interpolation == Interpolation::step || reached == points.size()) {
    return from.weights;
  }
  const Point& to = points[reached];
  // One division, then for each weight two products and a sum: the same doubles on every IEEE platform.
  const double part = static_cast<double>(held - from.step) / static_cast<double>(to.step - from.step);
  std::vector<double> weights(from.weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double rest = from.weights[i] * (1.0 - part);
    const double gained = to.weights[i] * part;
    weights[i] = rest + gained;
  }
  return weights;
}

std::uint64_t WeightCurve::next_change(std::uint64_t step) const {
  if (interpolation == Interpolation::step) {
    const std::size_t reached = num_reached(points, step);
    // The first point's weights hold before it, too.
    const std::size_t next = std::max<std::size_t>(reached, 1);
    return next < points.size() ? points[next].step : kUnbounded;
  }
  if (points.size() == 1) {
    return kUnbounded;
  }
  const std::uint64_t held = step / every * every;
  if (held >= points.back().step) {
    return kUnbounded;
  }
  // The weights start to move at the first multiple of `every` behind the first point.
  const std::uint64_t next = std::max(held, points.front().step / every * every);
  return add_steps(next, every);
}

WeightCurve WeightCurve::rebased(std::uint64_t step, std::span<const double> weights) const {
  const std::vector<double> before = at(step);
  WeightCurve curve{.points = {}, .interpolation = interpolation, .every = every};
  curve.points.push_back({step, {weights.begin(), weights.end()}});
  for (const Point& point : points) {
    if (point.step <= step) {
      continue;
    }
    Point& later = curve.points.emplace_back(point);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      later.weights[i] = before[i] > 0 ? later.weights[i] / before[i] * weights[i] : later.weights[i] + weights[i];
    }
  }
  return curve;
}

void validate(const WeightCurve& curve, std::size_t num_sources) {
  if (curve.points.empty()) {
    throw ConfigError("weight_curve.points must have at least one point, got none");
  }
  if (curve.every == 0 || curve.every >= kMaxSteps) {
    throw ConfigError(format_message("weight_curve.every must be {}, got {}",
                                     curve.every == 0 ? "at least 1" : "below 2^62", curve.every));
  }
  for (std::size_t p = 0; p < curve.points.size(); ++p) {
    const WeightCurve::Point& point = curve.points[p];
    const std::string where = format_message("weight_curve.points[{}]", p);
    if (p > 0 && point.step <= curve.points[p - 1].step) {
      throw ConfigError(format_message("{} must come after the point before it: step {} does not follow {}", where,
                                       point.step, curve.points[p - 1].step));
    }
    if (point.step >= kMaxSteps) {
      throw ConfigError(format_message("{}: the step must be below 2^62", where));
    }
    if (point.weights.size() != num_sources) {
      throw ConfigError(
          format_message("{} must have one weight per source ({}), got {}", where, num_sources, point.weights.size()));
    }
    bool positive = false;
    for (std::size_t i = 0; i < num_sources; ++i) {
      const double weight = point.weights[i];
      if (!std::isfinite(weight) || weight < 0) {
        throw ConfigError(format_message("{}: weight {} must be finite and not negative, got {}", where, i, weight));
      }
      positive = positive || weight > 0;
    }
    if (!positive) {
      throw ConfigError(format_message("{} must have a positive weight, all are 0", where));
    }
  }
}

}  // namespace mtf
