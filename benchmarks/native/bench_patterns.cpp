// Patterns: drawing arrays of steps, one step at a random place, counts and inverses; beside a greedy loop that keeps
// every source's deficit, the way large-scale trainers blend their sources beforehand.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "harness.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"

namespace mtf::bench {
namespace {

constexpr std::size_t kNumSteps = 100'000;
constexpr double kBudget = 0.15;

/// Positive weights without a short decimal form: 1 / (i + 1) over their sum.
std::vector<double> zipf(std::size_t n) {
  std::vector<double> weights(n);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    sum += weights[i] = 1.0 / static_cast<double>(i + 1);
  }
  for (double& weight : weights) {
    weight /= sum;
  }
  return weights;
}

double measure_greedy(const std::string& label, const std::vector<double>& weights) {
  std::vector<std::int16_t> sources(kNumSteps);
  std::vector<std::int64_t> indices(kNumSteps);
  return measure(("greedy " + label).c_str(), kNumSteps,
                 [&] {
                   std::vector<std::int64_t> drawn(weights.size());
                   for (std::size_t step = 0; step < kNumSteps; ++step) {
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
                     sources[step] = static_cast<std::int16_t>(furthest);
                     indices[step] = drawn[furthest]++;
                   }
                   keep(sources.data());
                 },
                 kBudget);
}

template <Pattern P>
double measure_fill(const std::string& name, const P& pattern, std::size_t num_steps = kNumSteps) {
  std::vector<std::int32_t> slots(num_steps);
  std::uint64_t begin = 0;
  return measure((name + " array").c_str(), num_steps,
                 [&] {
                   pattern.fill(begin, slots);
                   // Other steps each time, lest the branch predictor learn them; within the length of a limited
                   // pattern.
                   begin = begin + 2 * num_steps < pattern.length() ? begin + num_steps : 0;
                   keep(slots.data());
                 },
                 kBudget);
}

/// Single steps at places that no cache can guess.
template <Pattern P>
void measure_queries(const std::string& name, const P& pattern, std::uint64_t within) {
  constexpr std::size_t kNumQueries = 50'000;  // more than the branch predictor can learn
  std::vector<std::uint64_t> steps(kNumQueries);
  std::vector<SlotDraw> draws(kNumQueries);
  Stream stream(Key{1});
  for (std::size_t i = 0; i < kNumQueries; ++i) {
    steps[i] = stream.bounded(within);
    draws[i] = pattern.at(steps[i]);
  }
  measure((name + " at").c_str(), kNumQueries,
          [&] {
            for (const std::uint64_t step : steps) {
              keep(pattern.at(step).index);
            }
          },
          kBudget);
  measure((name + " position").c_str(), kNumQueries,
          [&] {
            for (const SlotDraw& draw : draws) {
              keep(pattern.position(draw.slot, draw.index));
            }
          },
          kBudget);
  std::vector<std::uint64_t> counts(pattern.num_slots());
  measure((name + " counts").c_str(), 1,
          [&] {
            pattern.counts(steps[0], counts);
            keep(counts.data());
          },
          kBudget);
}

void print_ratio(const std::string& name, double ratio) {
  std::printf("{\"name\": \"%s\", \"ratio\": %.1f}\n", name.c_str(), ratio);
}

void run() {
  constexpr std::uint64_t kFar = std::uint64_t{1} << 40;
  for (const std::size_t n : {4, 64, 1'024}) {
    const std::string label = "n=" + std::to_string(n);
    const std::vector<double> weights = zipf(n);
    const std::vector<std::uint32_t> integers = quantise(weights);
    const double greedy_ns = measure_greedy(label, weights);
    const WeightedEven even(integers, {}, 1, {}, Key{1});
    print_ratio("greedy / even " + label, greedy_ns / measure_fill("even " + label, even));
    measure_queries("even " + label, even, kFar);
    const WeightedShuffled shuffled(integers, {}, 1, {}, Key{1});
    measure_fill("shuffled " + label, shuffled);
    measure_queries("shuffled " + label, shuffled, kFar);
    const WeightedRandom random(integers, 1, {}, Key{1});
    measure_fill("random " + label, random);
  }
  {
    const std::size_t n = 100'000;
    const std::vector<std::uint32_t> integers = quantise(zipf(n));
    const std::vector<std::uint64_t> limits(n, 10);
    const WeightedEven even(integers, {}, 1, {}, Key{1});
    measure_fill("even n=100000", even);
    measure_queries("even n=100000", even, kFar);
    measure("even n=100000 with limits: build, per slot", n, [&] {
      const WeightedEven limited(integers, {}, 1, limits, Key{1});
      keep(limited.length());
    });
    const WeightedEven limited(integers, {}, 1, limits, Key{1});
    measure_fill("even n=100000 with limits", limited, 900'000);
    measure_queries("even n=100000 with limits", limited, limited.length());
  }
  measure_fill("even 0.7 0.2 0.1", WeightedEven(quantise(std::vector<double>{0.7, 0.2, 0.1})));
  measure_fill("round robin n=4", RoundRobin(4));
  measure_fill("round robin n=64 burst 5", RoundRobin(64, 5));
  measure_fill("alternating 0 0 1 burst 2", Alternating(std::vector<std::int32_t>{0, 0, 1}, 2, 2));
  measure_fill("sequential n=4", Sequential(std::vector<std::uint64_t>{30'000, 20'000, 50'000, 100'000}));
  const std::vector<std::uint64_t> limits{90'000, 10'000, 60'000, 70'001};
  measure_fill("round robin n=4 with limits", RoundRobin(4, 1, limits));
  measure_fill("round robin n=4 burst 3 with limits", RoundRobin(4, 3, limits));
  measure_queries("round robin n=4 with limits", RoundRobin(4, 1, limits), 200'000);
  const std::vector<std::uint32_t> tenths{7, 2, 1};
  const WeightedRandom random(tenths, 1, {}, Key{1});
  measure("random count 65535 turns after a kept one", 1, [&] {
    keep(random.count(0, 65'535 + 65'536));
    keep(random.count(0, 65'536));
  });
}

}  // namespace
}  // namespace mtf::bench

int main() { mtf::bench::run(); }
