#include "mtf/schedule/patterns/round_robin.hpp"

#include <numeric>
#include <vector>

namespace mtf {
namespace {

std::vector<std::int32_t> each_once(std::uint32_t num_slots) {
  std::vector<std::int32_t> pattern(num_slots);
  std::iota(pattern.begin(), pattern.end(), 0);
  return pattern;
}

}  // namespace

RoundRobin::RoundRobin(std::uint32_t num_slots, std::uint64_t burst, std::span<const std::uint64_t> limits)
    : WithBursts(Rotation(each_once(num_slots), num_slots, turn_limits(limits, burst, num_slots)), burst, limits) {}

}  // namespace mtf
