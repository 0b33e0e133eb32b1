/// How a node of EVEN's tree distributes its draws from one moment of its clock on: by a rounded linear function.
///
/// Of the node's first c draws, c counted from `clock`, light + floor((c a + phase) / v) go to its light child: a is
/// that child's weight, v the node's. Divisions are by a reciprocal, exact for every divisor up to 2^31.
#pragma once

#include <cstdint>

#include "mtf/schedule/pattern.hpp"

namespace mtf {

struct Division {
  std::uint64_t quotient;
  std::uint32_t remainder;
};

/// `numerator`, below 2^63, divided by `divisor`, given reciprocal_of(divisor).
[[nodiscard]] constexpr Division divide(std::uint64_t numerator, std::uint32_t divisor,
                                        std::uint64_t reciprocal) noexcept {
  // By the truncated reciprocal the quotient is right or one too small.
  auto quotient = static_cast<std::uint64_t>((static_cast<unsigned __int128>(numerator) * reciprocal) >> 64);
  std::uint64_t remainder = numerator - quotient * divisor;
  const bool is_short = remainder >= divisor;
  quotient += is_short ? 1 : 0;
  remainder -= is_short ? divisor : 0;
  return {quotient, static_cast<std::uint32_t>(remainder)};
}

[[nodiscard]] constexpr std::uint64_t reciprocal_of(std::uint32_t divisor) noexcept {
  return ~std::uint64_t{0} / divisor;
}

[[nodiscard]] constexpr std::uint64_t saturate(unsigned __int128 step) noexcept {
  return step >= kMaxSteps ? kUnbounded : static_cast<std::uint64_t>(step);
}

struct NodeInterval {
  std::uint64_t clock;
  std::uint64_t light;  // draws passed to the light child before
  std::uint64_t reciprocal;
  std::uint32_t light_weight;
  std::uint32_t weight;
  std::uint32_t phase;

  NodeInterval(std::uint64_t clock, std::uint64_t light, std::uint32_t light_weight, std::uint32_t weight,
               std::uint32_t phase) noexcept;

  struct Distributed {
    std::uint64_t light;
    std::uint32_t remainder;
  };
  /// Draws passed to the light child among the node's first `at_clock`, and the remainder of the division.
  [[nodiscard]] Distributed distributed(std::uint64_t at_clock) const noexcept;

  /// The smallest clock at which a child was drawn `count` times, more than at the start of the interval; kUnbounded if
  /// it never is.
  [[nodiscard]] std::uint64_t reach(bool is_light, std::uint64_t count) const noexcept;
};

inline NodeInterval::NodeInterval(std::uint64_t clock_, std::uint64_t light_, std::uint32_t light_weight_,
                                  std::uint32_t weight_, std::uint32_t phase_) noexcept
    : clock(clock_),
      light(light_),
      reciprocal(reciprocal_of(weight_)),
      light_weight(light_weight_),
      weight(weight_),
      phase(phase_) {}

inline NodeInterval::Distributed NodeInterval::distributed(std::uint64_t at_clock) const noexcept {
  std::uint64_t since = at_clock - clock;
  std::uint64_t whole = light;
  if (since >> 32 != 0) [[unlikely]] {
    whole += since / weight * light_weight;
    since %= weight;
  }
  const Division division = divide(since * light_weight + phase, weight, reciprocal);
  return {whole + division.quotient, division.remainder};
}

inline std::uint64_t NodeInterval::reach(bool is_light, std::uint64_t count) const noexcept {
  const std::uint64_t share = is_light ? light_weight : weight - light_weight;
  if (share == 0) {
    return kUnbounded;
  }
  // light(d) = floor((d a + phase) / v) >= y from d = ceil((y v - phase) / a) on;
  // heavy(d) = ceil((d b - phase) / v) >= y from d = floor(((y - 1) v + phase) / b) + 1 on.
  const std::uint64_t y = count - (is_light ? light : clock - light);
  if (y >> 32 == 0) {
    const std::uint64_t since =
        is_light ? (y * weight - phase + share - 1) / share : ((y - 1) * weight + phase) / share + 1;
    return clock + since;
  }
  const unsigned __int128 since = is_light ? (static_cast<unsigned __int128>(y) * weight - phase + share - 1) / share
                                           : (static_cast<unsigned __int128>(y - 1) * weight + phase) / share + 1;
  return saturate(since + clock);
}

}  // namespace mtf
