// RANDOM: independent draws, kept counts, and slots that run out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "mtf/error.hpp"
#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Counts;
using test::Slots;
using Weights = std::vector<std::uint32_t>;

TEST(WeightedRandom, AllViewsAgreeForAllSmallWeightsLimitsAndBursts) {
  const std::vector<std::uint64_t> weight_choices{1, 9};
  const std::vector<std::uint64_t> limit_choices{0, 1, 4, 30, kUnbounded};
  for (std::size_t size = 1; size <= 3; ++size) {
    test::for_each_vector(size, weight_choices, [&](const std::vector<std::uint64_t>& wide) {
      const Weights weights(wide.begin(), wide.end());
      for (const std::uint64_t burst : {1, 3}) {
        test::for_each_vector(size, limit_choices, [&](const std::vector<std::uint64_t>& limits) {
          const WeightedRandom pattern(weights, burst, limits, Key{burst});
          const WeightedRandom turns(weights, 1, test::rounded_up(limits, burst), Key{burst});
          const Slots turn_slots = test::filled(turns, 0, std::min<std::uint64_t>(turns.length(), 60));
          Slots expected = test::stretched(turn_slots, burst, limits);
          expected.resize(std::min<std::uint64_t>(pattern.length(), 60));
          ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, expected));
          if (pattern.length() != kUnbounded) {
            ASSERT_EQ(test::counted(pattern, pattern.length()), limits);
          }
        });
      }
    });
  }
}

/// Pearson's statistic of the counts against the weights.
double chi_square(const Counts& counts, const Weights& weights) {
  const double num = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  for (std::size_t slot = 0; slot < counts.size(); ++slot) {
    const double expected = num * weights[slot] / total;
    sum += (static_cast<double>(counts[slot]) - expected) * (static_cast<double>(counts[slot]) - expected) / expected;
  }
  return sum;
}

TEST(WeightedRandom, SharesPassChiSquareOverManySeeds) {
  const Weights weights{1, 2, 3, 4, 10};
  double sum = 0;
  constexpr int kSeeds = 400;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const double statistic = chi_square(test::counted(WeightedRandom(weights, 1, {}, Key{seed}), 2'000), weights);
    EXPECT_LT(statistic, 30);  // 4 degrees of freedom: 5e-6
    sum += statistic;
  }
  // Mean 4 and variance 8 for each seed.
  EXPECT_NEAR(sum / kSeeds, 4, 5 * std::sqrt(8.0 / kSeeds));
}

TEST(WeightedRandom, NeighboursAreUncorrelated) {
  const Weights weights{3, 1};
  double sum = 0;
  constexpr int kSeeds = 200;
  constexpr std::size_t kSteps = 4'000;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const Slots drawn = test::filled(WeightedRandom(weights, 1, {}, Key{seed}), 0, kSteps + 1);
    for (std::size_t step = 0; step < kSteps; ++step) {
      sum += (drawn[step] - 0.25) * (drawn[step + 1] - 0.25) / (0.25 * 0.75);
    }
  }
  EXPECT_NEAR(sum / (kSeeds * kSteps), 0, 5 / std::sqrt(kSeeds * kSteps));
}

TEST(WeightedRandom, TheLivingKeepTheirProportions) {
  // After the heavy slot is exhausted, nine of ten draws fall on it and are drawn again among the others.
  const Weights weights{90, 1, 2, 7};
  const std::vector<std::uint64_t> limits{10, kUnbounded, kUnbounded, kUnbounded};
  Counts counts(4);
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const Counts some = test::counted(WeightedRandom(weights, 1, limits, Key{seed}), 2'010);
    ASSERT_EQ(some[0], 10U);
    for (std::size_t slot = 0; slot < 4; ++slot) {
      counts[slot] += some[slot];
    }
  }
  // The few draws before it was exhausted are the active ones' own proportions as well.
  EXPECT_LT(chi_square({counts[1], counts[2], counts[3]}, {1, 2, 7}), 25);
}

TEST(WeightedRandom, RememberedCountsStandForTheDrawsBefore) {
  const Weights weights{5, 3, 1, 1};
  const std::vector<std::uint64_t> endless(4, kUnbounded);
  const std::vector<std::uint64_t> limits{900, 400, 50, kUnbounded};
  for (const std::uint64_t burst : {1, 4}) {
    for (const auto& limit : {endless, limits}) {
      const WeightedRandom walked(weights, burst, limit, Key{3});
      for (const std::uint64_t step : {0, 1, 999, 1'002, 1'800}) {
        const WeightedRandom resumed(weights, burst, limit, Key{3});
        resumed.remember(step, test::counted(walked, step));
        EXPECT_EQ(resumed.at(step), walked.at(step));
        EXPECT_EQ(test::counted(resumed, 3'000), test::counted(walked, 3'000));
        EXPECT_EQ(test::filled(resumed, step, 500), test::filled(walked, step, 500));
      }
    }
  }
  const WeightedRandom pattern(weights);
  EXPECT_THROW(pattern.remember(5, Counts{1, 1, 1, 1}), StateMismatch);
  EXPECT_THROW(pattern.remember(3, Counts{1, 1, 1}), StateMismatch);
}

TEST(WeightedRandom, FarStepsAgreeWhenKeptCountsAreThinnedOut) {
  constexpr std::uint64_t kSpacing = std::uint64_t{1} << 16;
  const Weights weights{5, 3, 1};
  const std::vector<std::uint64_t> endless(3, kUnbounded);
  const std::vector<std::uint64_t> limits{kSpacing * 20, kUnbounded, kSpacing * 5};
  for (const auto& limit : {endless, limits}) {
    const WeightedRandom pattern(weights, 1, limit, Key{29});
    const Slots drawn = test::filled(pattern, 0, 200 * kSpacing);
    const std::vector<std::uint64_t> steps{150 * kSpacing + 7, 149 * kSpacing,       3,
                                           10 * kSpacing + 1,  190 * kSpacing - 1,   185 * kSpacing,
                                           kSpacing,           100 * kSpacing + 100, 199 * kSpacing};
    for (const std::uint64_t step : steps) {
      Counts counts(3);
      for (std::uint64_t i = 0; i < step; ++i) {
        ++counts[static_cast<std::size_t>(drawn[i])];
      }
      EXPECT_EQ(test::counted(pattern, step), counts) << step;
      const std::int32_t slot = drawn[step];
      EXPECT_EQ(pattern.at(step), (SlotDraw{slot, counts[static_cast<std::size_t>(slot)]})) << step;
      EXPECT_EQ(pattern.position(slot, counts[static_cast<std::size_t>(slot)]), step);
    }
    const WeightedRandom resumed(weights, 1, limit, Key{29});
    const std::uint64_t step = 120 * kSpacing + 5;
    resumed.remember(step, test::counted(pattern, step));
    EXPECT_EQ(test::counted(resumed, 199 * kSpacing + 3), test::counted(pattern, 199 * kSpacing + 3));
    EXPECT_EQ(resumed.at(step + 2), pattern.at(step + 2));
    EXPECT_EQ(resumed.at(17), pattern.at(17));
  }
}

TEST(WeightedRandom, StepsAnyWhereAgreeAcrossKeptCounts) {
  const Weights weights{1, 2, 3};
  const WeightedRandom pattern(weights, 1, {}, Key{17});
  const std::size_t num_steps = 200'000;
  const Slots drawn = test::filled(pattern, 0, num_steps);
  Counts counts(3);
  std::vector<Counts> indices(3);
  std::vector<std::uint64_t> index(num_steps);
  for (std::size_t step = 0; step < num_steps; ++step) {
    index[step] = counts[static_cast<std::size_t>(drawn[step])]++;
  }
  for (const std::size_t step : {199'999, 3, 131'072, 65'535, 65'536, 65'537, 150'000, 1, 131'071}) {
    EXPECT_EQ(pattern.at(step), (SlotDraw{drawn[step], index[step]}));
    EXPECT_EQ(pattern.position(drawn[step], index[step]), step);
  }
  test::expect_chunks_agree(pattern, 10'000);
  const std::vector<std::uint64_t> limits{100'000, 50'000, 50'000};
  const WeightedRandom limited(weights, 1, limits, Key{17});
  test::expect_chunks_agree(limited, num_steps);
  for (std::int32_t slot = 0; slot < 3; ++slot) {
    const std::uint64_t last = limits[static_cast<std::size_t>(slot)] - 1;
    EXPECT_EQ(limited.at(limited.position(slot, last)), (SlotDraw{slot, last}));
  }
}

TEST(WeightedRandom, ThreadsMayShareAPattern) {
  const Weights weights{1, 2, 3};
  const WeightedRandom pattern(weights, 1, {}, Key{17});
  const Counts expected = test::counted(WeightedRandom(weights, 1, {}, Key{17}), 70'000);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (const std::uint64_t step : {100, 66'000, 5}) {
        static_cast<void>(pattern.at(step + static_cast<std::uint64_t>(i)));
      }
      EXPECT_EQ(test::counted(pattern, 70'000), expected);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST(WeightedRandom, HugeRatiosAndManySlots) {
  const std::vector<double> ratio{1e-9, 1};
  const WeightedRandom lopsided(quantise(ratio), 1, {}, Key{1});
  EXPECT_LE(lopsided.count(0, 100'000), 2U);
  const std::size_t n = 100'000;
  const Weights weights(n, 3);
  std::vector<std::uint64_t> limits(n, 5);
  const WeightedRandom pattern(weights, 1, limits, Key{2});
  const Slots drawn = test::filled(pattern, 0, pattern.length());
  Counts counts(n);
  for (const std::int32_t slot : drawn) {
    ++counts[static_cast<std::size_t>(slot)];
  }
  EXPECT_EQ(counts, limits);
}

TEST(WeightedRandom, BadInputIsRefused) {
  EXPECT_THROW(WeightedRandom(Weights{}), ConfigError);
  EXPECT_THROW(WeightedRandom(Weights{1, 0}), ConfigError);
  EXPECT_THROW(WeightedRandom(Weights{0x80000000U, 1}), ConfigError);
  EXPECT_THROW(WeightedRandom(Weights{1}, 0), ConfigError);
}

}  // namespace
}  // namespace mtf
