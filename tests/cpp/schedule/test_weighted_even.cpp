// EVEN: its bound, its views of the same draws, and slots that run out.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "mtf/error.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Counts;
using test::Slots;
using Weights = std::vector<std::uint32_t>;

/// The largest |draws - k w / W| over the first `num_steps` steps, looked at after every step for the slot drawn and
/// for every slot now and then.
double worst_deviation(const Slots& drawn, const Weights& weights) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  Counts counts(weights.size());
  double worst = 0;
  for (std::size_t step = 0; step < drawn.size(); ++step) {
    const auto slot = static_cast<std::size_t>(drawn[step]);
    const double share = weights[slot] / total;
    // Extremes lie just before and just after a draw of the slot.
    worst = std::max(worst, std::abs(static_cast<double>(counts[slot]) - static_cast<double>(step) * share));
    ++counts[slot];
    worst = std::max(worst, std::abs(static_cast<double>(counts[slot]) - static_cast<double>(step + 1) * share));
  }
  for (std::size_t slot = 0; slot < weights.size(); ++slot) {
    const double expected = static_cast<double>(drawn.size()) * weights[slot] / total;
    worst = std::max(worst, std::abs(static_cast<double>(counts[slot]) - expected));
  }
  return worst;
}

TEST(WeightedEven, AllViewsAgreeForAllSmallWeightsLimitsAndBursts) {
  const std::vector<std::uint64_t> weight_choices{1, 2, 5};
  const std::vector<std::uint64_t> limit_choices{0, 1, 3, 8, kUnbounded};
  for (std::size_t size = 1; size <= 3; ++size) {
    test::for_each_vector(size, weight_choices, [&](const std::vector<std::uint64_t>& wide) {
      const Weights weights(wide.begin(), wide.end());
      for (const std::uint64_t burst : {1, 2, 3}) {
        const WeightedEven unlimited(weights, {}, burst, {}, Key{7});
        ASSERT_NO_FATAL_FAILURE(test::expect_draws(unlimited, test::filled(unlimited, 0, 50)));
        test::for_each_vector(size, limit_choices, [&](const std::vector<std::uint64_t>& limits) {
          const WeightedEven pattern(weights, {}, burst, limits, Key{burst});
          const std::size_t num = std::min<std::uint64_t>(pattern.length(), 40);
          const WeightedEven turns(weights, {}, 1, test::rounded_up(limits, burst), Key{burst});
          const Slots turn_slots = test::filled(turns, 0, std::min<std::uint64_t>(turns.length(), 40));
          Slots expected = test::stretched(turn_slots, burst, limits);
          expected.resize(num);
          ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, expected));
          if (pattern.length() != kUnbounded) {
            ASSERT_EQ(test::counted(pattern, pattern.length()), limits);
          }
        });
      }
    });
  }
}

TEST(WeightedEven, StaysWithinItsCertificate) {
  Stream stream(Key{42});
  for (int round = 0; round < 150; ++round) {
    const std::size_t n = 1 + stream.bounded(40);
    Weights weights(n);
    const std::uint64_t spread = 1 + stream.bounded(20);
    for (std::uint32_t& weight : weights) {
      weight = static_cast<std::uint32_t>(1 + stream.bounded(std::uint64_t{1} << spread));
    }
    const WeightedEven pattern(weights, {}, 1, {}, Key{stream.next()});
    EXPECT_LE(pattern.deviation_bound(), 1.69);
    EXPECT_LE(worst_deviation(test::filled(pattern, 0, 5'000), weights), pattern.deviation_bound());
  }
}

TEST(WeightedEven, AdversarialWeightsStayWithinTheProvenBound) {
  Weights fibonacci{1, 1};
  while (fibonacci.size() < 40) {
    fibonacci.push_back(fibonacci.back() + fibonacci[fibonacci.size() - 2]);
  }
  Weights powers;
  for (int i = 0; i < 30; ++i) {
    powers.push_back(1U << i);
  }
  Weights tiny_first(99, 1);
  tiny_first.push_back(9'901);
  Weights almost_equal;
  for (std::uint32_t i = 0; i < 33; ++i) {
    almost_equal.push_back(1'000'000 + i % 2);
  }
  for (const Weights& weights :
       {fibonacci, powers, tiny_first, almost_equal, Weights{1}, Weights{1, 2'000'000'000}, Weights{3, 3, 4}}) {
    for (std::uint64_t key = 0; key < 4; ++key) {
      const WeightedEven pattern(weights, {}, 1, {}, Key{key});
      EXPECT_LE(pattern.deviation_bound(), 1.69);
      EXPECT_LE(worst_deviation(test::filled(pattern, 0, 30'000), weights), pattern.deviation_bound());
    }
  }
}

TEST(WeightedEven, BurstsScaleTheCertificate) {
  const Weights weights{5, 3, 1, 1};
  const WeightedEven pattern(weights, {}, 4, {}, Key{3});
  EXPECT_LE(worst_deviation(test::filled(pattern, 0, 4'000), weights), pattern.deviation_bound());
}

TEST(WeightedEven, ManyTinySourcesFirstDontStarveTheLargeOne) {
  // Nested floors let the sum of 99 rounding errors fall on the last source; here each source bears its own.
  Weights weights(99, 100);
  weights.push_back(990'100);
  const WeightedEven pattern(weights, {}, 1, {}, Key{0});
  for (const std::uint64_t step : {100, 1'000, 5'000, 50'000}) {
    EXPECT_NEAR(static_cast<double>(pattern.count(99, step)), static_cast<double>(step) * 0.9901, 1.69);
  }
}

TEST(WeightedEven, WeightsWithBurstsReachEverySource) {
  const std::vector<double> weights{0.5, 0.3, 0.2};
  const WeightedEven pattern(quantise(weights), {}, 10, {}, Key{0});
  EXPECT_EQ(test::counted(pattern, 100), (Counts{50, 30, 20}));
}

TEST(WeightedEven, RepeatsAfterTheSumOfTheWeightsAndFarStepsAreExact) {
  const Weights weights{7, 2, 1};
  const WeightedEven pattern(weights, {}, 1, {}, Key{5});
  const Slots first = test::filled(pattern, 0, 10);
  const std::uint64_t far = std::uint64_t{1} << 53;
  EXPECT_EQ(test::filled(pattern, far / 10 * 10, 10), first);
  for (std::uint64_t step = far; step < far + 50; ++step) {
    const SlotDraw draw = pattern.at(step);
    EXPECT_EQ(pattern.position(draw.slot, draw.index), step);
    EXPECT_EQ(pattern.count(draw.slot, step), draw.index);
  }
  test::expect_chunks_agree(pattern, 20'000);
}

TEST(WeightedEven, TheNumberingOfTheSlotsDoesntMatter) {
  const Weights weights{4, 4, 2, 9};
  const std::vector<std::string> names{"a", "b", "c", "d"};
  const Weights reordered_weights{9, 2, 4, 4};
  const std::vector<std::string> reordered_names{"d", "c", "b", "a"};
  const Slots drawn = test::filled(WeightedEven(weights, names, 1, {}, Key{9}), 0, 200);
  Slots reordered = test::filled(WeightedEven(reordered_weights, reordered_names, 1, {}, Key{9}), 0, 200);
  for (std::int32_t& slot : reordered) {
    slot = 3 - slot;
  }
  EXPECT_EQ(drawn, reordered);
}

TEST(WeightedEven, KeysGiveDifferentOrders) {
  const Weights weights{1, 1, 1, 1};
  EXPECT_NE(test::filled(WeightedEven(weights, {}, 1, {}, Key{1}), 0, 40),
            test::filled(WeightedEven(weights, {}, 1, {}, Key{2}), 0, 40));
}

TEST(WeightedEven, DeathsFollowTheFluidIdeal) {
  // Between deaths every active slot advances by its share of the active weight; compare with that line.
  Stream stream(Key{11});
  for (int round = 0; round < 12; ++round) {
    const std::size_t n = 2 + stream.bounded(60);
    Weights weights(n);
    std::vector<std::uint64_t> limits(n);
    for (std::size_t slot = 0; slot < n; ++slot) {
      weights[slot] = static_cast<std::uint32_t>(1 + stream.bounded(1'000));
      limits[slot] = stream.bounded(200);
    }
    const WeightedEven pattern(weights, {}, 1, limits, Key{stream.next()});
    const Slots drawn = test::filled(pattern, 0, pattern.length());
    ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, drawn));
    ASSERT_EQ(test::counted(pattern, pattern.length()), limits);
    std::vector<double> ideal(n);
    Counts counts(n);
    double worst = 0;
    for (const std::int32_t slot : drawn) {
      double room = 1;
      while (room > 1e-12) {  // one step of the fluid, in parts when a slot is filled on the way
        double active = 0;
        double part = room;
        for (std::size_t i = 0; i < n; ++i) {
          active += ideal[i] + 1e-12 < static_cast<double>(limits[i]) ? weights[i] : 0;
        }
        if (active == 0) {
          break;
        }
        for (std::size_t i = 0; i < n; ++i) {
          const double left = static_cast<double>(limits[i]) - ideal[i];
          if (left > 1e-12) {
            part = std::min(part, left * active / weights[i]);
          }
        }
        for (std::size_t i = 0; i < n; ++i) {
          ideal[i] += ideal[i] + 1e-12 < static_cast<double>(limits[i]) ? part * weights[i] / active : 0;
        }
        room -= part;
      }
      ++counts[static_cast<std::size_t>(slot)];
      for (std::size_t i = 0; i < n; ++i) {
        worst = std::max(worst, std::abs(ideal[i] - static_cast<double>(counts[i])));
      }
    }
    EXPECT_LE(worst, 4.0);
  }
}

TEST(WeightedEven, AHundredThousandSlotsWithLimits) {
  const std::size_t n = 100'000;
  Weights weights(n);
  std::vector<std::uint64_t> limits(n);
  for (std::size_t slot = 0; slot < n; ++slot) {
    weights[slot] = static_cast<std::uint32_t>(1 + 20'000 / (slot + 1));
    limits[slot] = 1 + slot % 7;
  }
  const WeightedEven pattern(weights, {}, 1, limits, Key{1});
  const Slots drawn = test::filled(pattern, 0, pattern.length());
  Counts counts(n);
  for (std::size_t step = 0; step < drawn.size(); ++step) {
    const SlotDraw draw{drawn[step], counts[static_cast<std::size_t>(drawn[step])]++};
    if (step % 499 == 0) {
      ASSERT_EQ(pattern.at(step), draw);
      ASSERT_EQ(pattern.position(draw.slot, draw.index), step);
    }
  }
  EXPECT_EQ(counts, limits);
}

TEST(WeightedEven, BadInputIsRefused) {
  EXPECT_THROW(WeightedEven(Weights{}), ConfigError);
  EXPECT_THROW(WeightedEven(Weights{1, 0}), ConfigError);
  EXPECT_THROW(WeightedEven(Weights{0x80000000U, 1}), ConfigError);
  EXPECT_THROW(WeightedEven(Weights{1, 1}, {}, 0), ConfigError);
  EXPECT_THROW(WeightedEven(Weights{1, 1}, std::vector<std::string>{"a"}), ConfigError);
}

}  // namespace
}  // namespace mtf
