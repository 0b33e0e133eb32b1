// SHUFFLED: EVEN's draws block by block, in another order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Slots;
using Weights = std::vector<std::uint32_t>;

TEST(WeightedShuffled, AllViewsAgreeForAllSmallWeightsLimitsAndBursts) {
  const std::vector<std::uint64_t> weight_choices{1, 5};
  const std::vector<std::uint64_t> limit_choices{0, 1, 7, 80, kUnbounded};
  for (std::size_t size = 1; size <= 3; ++size) {
    test::for_each_vector(size, weight_choices, [&](const std::vector<std::uint64_t>& wide) {
      const Weights weights(wide.begin(), wide.end());
      for (const std::uint64_t burst : {1, 3}) {
        test::for_each_vector(size, limit_choices, [&](const std::vector<std::uint64_t>& limits) {
          const WeightedShuffled pattern(weights, {}, burst, limits, Key{burst});
          const WeightedShuffled turns(weights, {}, 1, test::rounded_up(limits, burst), Key{burst});
          const Slots turn_slots = test::filled(turns, 0, std::min<std::uint64_t>(turns.length(), 150));
          Slots expected = test::stretched(turn_slots, burst, limits);
          expected.resize(std::min<std::uint64_t>(pattern.length(), 150));
          ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, expected));
        });
      }
    });
  }
}

TEST(WeightedShuffled, EveryBlockHoldsExactlyTheDrawsOfEven) {
  Stream stream(Key{8});
  for (const std::size_t n : {1, 2, 16, 17, 40, 64, 65, 500}) {
    Weights weights(n);
    for (std::uint32_t& weight : weights) {
      weight = static_cast<std::uint32_t>(1 + stream.bounded(1'000));
    }
    const WeightedShuffled pattern(weights, {}, 1, {}, Key{n});
    const std::size_t block = mtf::ShuffledBlocks::kBlockSize;
    Slots shuffled = test::filled(pattern, 0, block * 20);
    Slots even = test::filled(WeightedEven(weights, {}, 1, {}, Key{n}), 0, block * 20);
    if (n > 1) {
      EXPECT_NE(shuffled, even);
    }
    for (auto [a, b] = std::pair(shuffled.begin(), even.begin()); a != shuffled.end();) {
      const auto step = static_cast<std::ptrdiff_t>(block);
      std::sort(a, a + step);
      std::sort(b, b + step);
      ASSERT_TRUE(std::equal(a, a + step, b));
      a += step;
      b += step;
    }
  }
}

TEST(WeightedShuffled, StaysWithinAQuarterOfABlockOfEvensBound) {
  // A slot drawn a times in a block is after j of its B draws at most a (B - a) / B <= B / 4 off a straight line.
  Stream stream(Key{12});
  for (const std::size_t n : {2, 3, 10, 200}) {
    Weights weights(n);
    for (std::uint32_t& weight : weights) {
      weight = static_cast<std::uint32_t>(1 + stream.bounded(100'000));
    }
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double bound = WeightedEven(weights, {}, 1, {}, Key{n}).deviation_bound() + 64 / 4.0;
    test::Counts counts(n);
    const Slots drawn = test::filled(WeightedShuffled(weights, {}, 1, {}, Key{n}), 0, 20'000);
    for (std::size_t step = 0; step < drawn.size(); ++step) {
      for (std::size_t slot = 0; slot < n; ++slot) {
        const double share = static_cast<double>(step) * weights[slot] / total;
        ASSERT_LE(std::abs(static_cast<double>(counts[slot]) - share), bound) << "n " << n << " step " << step;
      }
      ++counts[static_cast<std::size_t>(drawn[step])];
    }
  }
}

TEST(WeightedShuffled, ChunksAgree) {
  const Weights weights{7, 2, 1};
  test::expect_chunks_agree(WeightedShuffled(weights, {}, 1, {}, Key{1}), 5'000);
  test::expect_chunks_agree(WeightedShuffled(weights, {}, 3, {}, Key{1}), 5'000);
  const std::vector<std::uint64_t> limits{1'000, 2'000, 1'500};
  test::expect_chunks_agree(WeightedShuffled(weights, {}, 1, limits, Key{1}), 4'500);
}

TEST(WeightedShuffled, JumpingAboutAgreesWithWalking) {
  Stream stream(Key{5});
  for (const std::size_t n : {3, 17, 40, 300}) {
    Weights weights(n);
    std::vector<std::uint64_t> limits(n);
    for (std::size_t slot = 0; slot < n; ++slot) {
      weights[slot] = static_cast<std::uint32_t>(1 + 3'000 / (slot + 1));
      limits[slot] = 6'000 / n + stream.bounded(50);
    }
    for (const bool is_limited : {false, true}) {
      const WeightedShuffled pattern(weights, {}, 1, is_limited ? limits : std::vector<std::uint64_t>{}, Key{n});
      const std::size_t num_steps = is_limited ? pattern.length() : 5'000;
      const Slots drawn = test::filled(pattern, 0, num_steps);
      std::vector<SlotDraw> draws;
      test::Counts counts(n);
      for (const std::int32_t slot : drawn) {
        draws.push_back({slot, counts[static_cast<std::size_t>(slot)]++});
      }
      for (int i = 0; i < 2'000; ++i) {
        const std::size_t step = stream.bounded(num_steps);
        ASSERT_EQ(pattern.at(step), draws[step]) << "n " << n << " step " << step;
        const std::size_t other = stream.bounded(num_steps);
        ASSERT_EQ(pattern.position(draws[other].slot, draws[other].index), other);
      }
    }
  }
}

TEST(WeightedShuffled, NeighboursAreCorrelatedAsInARandomOrderOfABlock) {
  // Drawing without replacement from a block of B leaves a lag-1 correlation of -1 / (B - 1) inside blocks.
  const Weights weights{1, 1};
  double sum = 0;
  std::size_t num_pairs = 0;
  for (std::uint64_t key = 0; key < 200; ++key) {
    const Slots drawn = test::filled(WeightedShuffled(weights, {}, 1, {}, Key{key}), 0, 64 * 50);
    for (std::size_t step = 1; step < drawn.size(); ++step) {
      if (step % 64 != 0) {
        sum += (drawn[step] * 2 - 1) * (drawn[step - 1] * 2 - 1);
        ++num_pairs;
      }
    }
  }
  const double pairs = static_cast<double>(num_pairs);
  EXPECT_NEAR(sum / pairs, -1.0 / 63, 5 / std::sqrt(pairs));
}

}  // namespace
}  // namespace mtf
