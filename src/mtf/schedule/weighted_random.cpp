#include "mtf/schedule/weighted_random.hpp"

#include <algorithm>

#include "mtf/error.hpp"

namespace mtf {

void WeightedRandom::remember(std::uint64_t step, std::span<const std::uint64_t> counts) const {
  if (is_walked_) {
    std::vector<std::uint64_t> drawn(num_slots());
    this->counts(step, drawn);
    if (!std::ranges::equal(drawn, counts)) {
      throw StateMismatch("the counts of step " + std::to_string(step) + " are others than those that are drawn");
    }
    return;
  }
  const std::uint64_t burst = this->burst();
  std::vector<std::uint64_t> turn_counts(counts.begin(), counts.end());
  if (burst > 1 && counts.size() == num_slots()) {
    turn_counts[static_cast<std::size_t>(turns().slot_at(step / burst))] -= step % burst;
    for (std::uint64_t& count : turn_counts) {
      count /= burst;
    }
  }
  turns().remember(step / burst, turn_counts);
}

}  // namespace mtf
