#include "mtf/schedule/integer_weights.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {
namespace {

using Wide = unsigned __int128;

void check(std::span<const double> weights) {
  if (weights.empty() || weights.size() >= kMaxTotalWeight) {
    throw ConfigError(format_message("weights must name from 1 to 2^31 - 1 sources, got {}", weights.size()));
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i]) || weights[i] < 0) {
      throw ConfigError(format_message("weights[{}] must be a finite number >= 0, got {}", i, weights[i]));
    }
  }
  if (std::ranges::all_of(weights, [](double weight) { return weight == 0; })) {
    throw ConfigError("weights must hold at least one positive weight, but all are 0");
  }
}

/// The weights times `scale` over their greatest common divisor, if that is exact and small enough.
std::optional<std::vector<std::uint32_t>> scaled(std::span<const double> weights, double scale) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: integers up to here are doubles
  std::vector<std::uint64_t> integers;
  std::uint64_t divisor = 0;
  for (const double weight : weights) {
    const double integer = std::round(weight * scale);
    if (!(integer < kExact) || integer / scale != weight) {
      return std::nullopt;
    }
    integers.push_back(static_cast<std::uint64_t>(integer));
    divisor = std::gcd(divisor, integers.back());
  }
  Wide total = 0;
  for (std::uint64_t& integer : integers) {
    total += integer /= divisor;
  }
  if (total > kMaxTotalWeight) {
    return std::nullopt;
  }
  return std::vector<std::uint32_t>(integers.begin(), integers.end());
}

}  // namespace

std::vector<std::uint32_t> quantise(std::span<const double> weights) {
  check(weights);
  double scale = 1;
  for (int num_places = 0; num_places <= 9; ++num_places, scale *= 10) {
    if (auto exact = scaled(weights, scale)) {
      return *std::move(exact);
    }
  }
  // Fixed-point integers relative to the largest weight: exact in the upper 61 bits, and the same everywhere.
  int exponent = 0;
  std::ignore = std::frexp(std::ranges::max(weights), &exponent);
  std::vector<std::uint64_t> parts;
  for (const double weight : weights) {
    const auto part = static_cast<std::uint64_t>(std::ldexp(weight, 61 - exponent));
    parts.push_back(weight > 0 ? std::max<std::uint64_t>(part, 1) : 0);
  }
  return apportion(parts, kMaxTotalWeight);
}

std::vector<std::uint32_t> apportion(std::span<const std::uint64_t> parts, std::uint64_t total) {
  const Wide sum = std::accumulate(parts.begin(), parts.end(), Wide{0});
  std::vector<std::uint32_t> units(parts.size());
  std::vector<Wide> remainders(parts.size());
  std::int64_t num_left = static_cast<std::int64_t>(total);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Wide scaled_part = Wide{parts[i]} * total;
    units[i] =
        static_cast<std::uint32_t>(scaled_part / sum);  // NOLINT(clang-analyzer-core.DivideZero): some part is > 0
    remainders[i] = scaled_part % sum;
    if (units[i] == 0 && parts[i] > 0) {
      units[i] = 1;
      remainders[i] = 0;
    }
    num_left -= units[i];
  }
  std::vector<std::size_t> order(parts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (num_left > 0) {
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return remainders[a] > remainders[b]; });
    for (std::size_t i = 0; num_left > 0; ++i, --num_left) {
      ++units[order[i % order.size()]];
    }
  } else if (num_left < 0) {
    // The units given to tiny parts come from the largest ones.
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return units[a] > units[b]; });
    for (std::size_t i = 0; num_left < 0; i = (i + 1) % order.size()) {
      if (units[order[i]] > 1) {
        --units[order[i]];
        ++num_left;
      }
    }
  }
  return units;
}

}  // namespace mtf
