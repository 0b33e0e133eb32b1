// The order that large-scale trainers compute beforehand: each step goes to the source furthest behind its share.
// A baseline of our own writing, to compare with on the same machine: O(sources) per step, 10 bytes kept per step.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "harness.hpp"

namespace {

struct Order {
  std::vector<std::int16_t> sources;
  std::vector<std::int64_t> indices;
};

void greedy(const std::vector<double>& weights, Order& order) {
  std::vector<std::int64_t> drawn(weights.size(), 0);
  for (std::size_t step = 0; step < order.sources.size(); ++step) {
    const double elapsed = static_cast<double>(step + 1);
    std::size_t furthest = 0;
    double largest = weights[0] * elapsed - static_cast<double>(drawn[0]);
    for (std::size_t source = 1; source < weights.size(); ++source) {
      const double behind = weights[source] * elapsed - static_cast<double>(drawn[source]);
      if (behind > largest) {
        largest = behind;
        furthest = source;
      }
    }
    order.sources[step] = static_cast<std::int16_t>(furthest);
    order.indices[step] = drawn[furthest]++;
  }
}

}  // namespace

int main() {
  constexpr std::size_t kNumSteps = 100'000;
  for (const std::size_t n : {4, 64, 1024}) {
    std::vector<double> weights(n);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += weights[i] = 1.0 / static_cast<double>(i + 1);
    for (double& weight : weights) weight /= sum;
    Order order{std::vector<std::int16_t>(kNumSteps), std::vector<std::int64_t>(kNumSteps)};
    mtf::bench::measure(("greedy order n=" + std::to_string(n)).c_str(), kNumSteps, [&] {
      greedy(weights, order);
      mtf::bench::keep(order.sources.data());
    });
  }
}
