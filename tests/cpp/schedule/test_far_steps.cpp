// Steps around the limits of 31, 32 and 53 bits, and near the largest: what every view says must still agree, and be
// what periods and blocks make of the first steps.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"
#include "mtf/schedule/schedule.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Counts;
using test::Slots;

constexpr std::uint64_t kAround[] = {std::uint64_t{1} << 31, std::uint64_t{1} << 32, std::uint64_t{1} << 53,
                                     std::uint64_t{1} << 61};
constexpr std::uint64_t kReach = 150;

template <Pattern P>
void expect_views_agree_far_away(const P& pattern) {
  for (const std::uint64_t middle : kAround) {
    const std::uint64_t begin = middle - kReach;
    const Slots drawn = test::filled(pattern, begin, 2 * kReach);
    ASSERT_EQ(test::filled(pattern, middle, kReach), Slots(drawn.begin() + kReach, drawn.end()));
    Counts counts = test::counted(pattern, begin);
    ASSERT_EQ(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}), begin);
    for (std::uint64_t t = 0; t < drawn.size(); ++t) {
      const std::int32_t slot = drawn[t];
      const std::uint64_t index = counts[static_cast<std::size_t>(slot)]++;
      ASSERT_EQ(pattern.at(begin + t), (SlotDraw{slot, index})) << middle << " - " << kReach << " + " << t;
      ASSERT_EQ(pattern.count(slot, begin + t), index);
      ASSERT_EQ(pattern.position(slot, index), begin + t);
    }
    ASSERT_EQ(test::counted(pattern, begin + drawn.size()), counts);
  }
}

/// A pattern of a short period draws far away what it draws at the start.
template <Pattern P>
void expect_repeats(const P& pattern, std::uint64_t period) {
  const Slots first = test::filled(pattern, 0, period);
  for (const std::uint64_t middle : kAround) {
    for (std::uint64_t step = middle - kReach; step < middle + kReach; ++step) {
      ASSERT_EQ(pattern.at(step).slot, first[step % period]) << step;
    }
  }
}

TEST(FarSteps, RotationsAndBlocksAgreeWithTheirFirstRound) {
  for (const std::uint64_t burst : {1, 3}) {
    const RoundRobin robin(5, burst);
    expect_views_agree_far_away(robin);
    expect_repeats(robin, 5 * burst);
    const Alternating alternating(Slots{0, 0, 1, 2}, 3, burst);
    expect_views_agree_far_away(alternating);
    expect_repeats(alternating, 4 * burst);
  }
  // A slot of many entries that left long ago: its entries in all rounds would be more than 2^64.
  const std::vector<std::uint64_t> limits{5, kUnbounded};
  expect_views_agree_far_away(Alternating(Slots{1, 0, 0, 0, 0, 0, 0, 0, 0}, 2, 1, limits));
  const std::vector<std::uint64_t> blocks{3, 50, 20};
  const Sequential cycling(blocks, true);
  expect_views_agree_far_away(cycling);
  expect_repeats(cycling, 73);
  const std::vector<std::uint64_t> huge{kAround[0], kAround[2] - kAround[0], std::uint64_t{1} << 61};
  expect_views_agree_far_away(Sequential(huge, false));
}

TEST(FarSteps, WeightedOrdersAgree) {
  std::vector<double> zipf(40);
  for (std::size_t i = 0; i < zipf.size(); ++i) {
    zipf[i] = 1.0 / static_cast<double>(i + 1);
  }
  const std::vector<std::vector<double>> mixtures{{0.7, 0.2, 0.1}, {1.0 / 3, 0.5, 0.25}, zipf};
  for (const std::vector<double>& mixture : mixtures) {
    const std::vector<std::uint32_t> weights = quantise(mixture);
    for (const std::uint64_t burst : {1, 3}) {
      const WeightedEven even(weights, {}, burst, {}, Key{6});
      const WeightedShuffled shuffled(weights, {}, burst, {}, Key{6});
      expect_views_agree_far_away(even);
      expect_views_agree_far_away(shuffled);
      // One slot that lives on beyond all others, with every limit past 2^53 and with one long gone.
      std::vector<std::uint64_t> limits(weights.size(), std::uint64_t{1} << 61);
      limits[1] = 1'000;
      expect_views_agree_far_away(WeightedEven(weights, {}, burst, limits, Key{6}));
      expect_views_agree_far_away(WeightedShuffled(weights, {}, burst, limits, Key{6}));
    }
  }
  expect_repeats(WeightedEven(quantise(mixtures[0]), {}, 1, {}, Key{6}), 10);
}

TEST(FarSteps, BlocksOfShuffledHoldEvensDraws) {
  const std::vector<std::uint32_t> weights = quantise(std::vector<double>{1.0 / 3, 0.5, 0.25});
  const WeightedEven even(weights, {}, 1, {}, Key{2});
  const WeightedShuffled shuffled(weights, {}, 1, {}, Key{2});
  for (const std::uint64_t middle : kAround) {
    for (const std::uint64_t begin : {middle - 64, middle}) {
      ASSERT_EQ(test::counted(shuffled, begin), test::counted(even, begin));
    }
    ASSERT_NE(test::filled(shuffled, middle, 640), test::filled(even, middle, 640));
  }
}

TEST(FarSteps, RandomDrawsDependOnTheStepAlone) {
  const std::vector<std::uint32_t> weights{7, 2, 1};
  const WeightedRandom pattern(weights, 1, {}, Key{4});
  for (const std::uint64_t middle : kAround) {
    const Slots drawn = test::filled(pattern, middle - kReach, 2 * kReach);
    for (std::uint64_t t = 0; t < drawn.size(); t += 7) {
      ASSERT_EQ(test::filled(pattern, middle - kReach + t, 1), Slots{drawn[t]});
    }
    const std::vector<Slots> others{test::filled(pattern, 0, 2 * kReach),
                                    test::filled(pattern, middle + (middle >> 1), 2 * kReach)};
    for (const Slots& other : others) {
      ASSERT_NE(drawn, other) << "the counter wrapped around";
    }
  }
}

TEST(FarSteps, PassesAndBatchesFollowFromTheCounts) {
  mtf::MixtureSpec spec;
  spec.sources = {{.name = "a", .length = 3}, {.name = "b", .length = 5}};
  spec.config.policy = EpochPolicy::fixed_num_steps;
  spec.config.steps_per_epoch = std::int64_t{1} << 61;
  Schedule schedule(spec, 1);
  for (const std::uint64_t middle : {kAround[0], kAround[1], kAround[2]}) {
    schedule.seek({0}, middle - kReach);
    for (std::uint64_t step = middle - kReach; step < middle + kReach; ++step) {
      const std::uint64_t source = step % 2;
      const std::uint64_t length = source == 0 ? 3 : 5;
      const Draw expected{step, static_cast<std::int32_t>(source), step / 2 / length, step / 2 % length};
      ASSERT_EQ(schedule.at(step, {0}), expected);
      ASSERT_EQ(schedule.next(), expected);
    }
  }
}

TEST(FarSteps, AStateTakenFarAwayGoesOnAsTheOriginal) {
  for (const WeightedOrder order : {WeightedOrder::even, WeightedOrder::shuffled}) {
    mtf::MixtureSpec spec;
    spec.sources = {{.name = "a", .length = 3}, {.name = "b", .length = (std::uint64_t{1} << 33) + 1}};
    spec.config.strategy = Strategy::weighted;
    spec.config.order = order;
    spec.config.weights = {0.3, 0.7};
    spec.config.policy = EpochPolicy::fixed_num_steps;
    spec.config.steps_per_epoch = std::int64_t{1} << 61;
    for (const std::uint64_t middle : {kAround[0], kAround[1], kAround[2]}) {
      Schedule schedule(spec, 1);
      schedule.seek({0}, middle - 1);
      (void)schedule.next();
      Schedule resumed = Schedule::from_state(schedule.state(middle));
      (void)schedule.update_weights(std::vector<double>{0.4, 0.6});
      (void)resumed.update_weights(std::vector<double>{0.4, 0.6});
      for (int i = 0; i < 500; ++i) {
        ASSERT_EQ(resumed.next(), schedule.next());
      }
    }
  }
}

}  // namespace
}  // namespace mtf
