// RoundRobin and Alternating against a step by step cursor.
#include <gtest/gtest.h>

#include <numeric>

#include "mtf/error.hpp"
#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Slots;

/// The pattern walked turn by turn, up to `max_steps`.
Slots cursor(const Slots& pattern, std::uint64_t burst, std::vector<std::uint64_t> left, std::size_t max_steps) {
  Slots out;
  while (out.size() < max_steps) {
    const std::size_t before = out.size();
    for (const std::int32_t slot : pattern) {
      std::uint64_t& slot_left = left[static_cast<std::size_t>(slot)];
      for (std::uint64_t i = 0; i < burst && slot_left > 0 && out.size() < max_steps; ++i) {
        slot_left -= slot_left == kUnbounded ? 0 : 1;
        out.push_back(slot);
      }
    }
    if (out.size() == before) {
      break;
    }
  }
  return out;
}

TEST(RoundRobin, MatchesTheWalkForAllSmallLimitsAndBursts) {
  const std::vector<std::uint64_t> choices{0, 1, 2, 3, 5, 8, kUnbounded};
  for (std::uint32_t num_slots = 1; num_slots <= 4; ++num_slots) {
    Slots each(num_slots);
    std::iota(each.begin(), each.end(), 0);
    for (const std::uint64_t burst : std::vector<std::uint64_t>{1, 2, 3, 7, kMaxSteps / 2}) {
      test::for_each_vector(num_slots, choices, [&](const std::vector<std::uint64_t>& limits) {
        const RoundRobin pattern(num_slots, burst, limits);
        const Slots expected = cursor(each, burst, limits, 40);
        ASSERT_EQ(pattern.length(), expected.size() < 40 ? expected.size() : kUnbounded);
        test::expect_draws(pattern, expected);
      });
    }
  }
}

TEST(RoundRobin, ExamplesOfTheSpecification) {
  EXPECT_EQ(test::filled(RoundRobin(2), 0, 6), (Slots{0, 1, 0, 1, 0, 1}));
  EXPECT_EQ(test::filled(RoundRobin(2, 1, std::vector<std::uint64_t>{3, 5}), 0, 8), (Slots{0, 1, 0, 1, 0, 1, 1, 1}));
  EXPECT_EQ(test::filled(RoundRobin(2, 2, std::vector<std::uint64_t>{3, 5}), 0, 8), (Slots{0, 0, 1, 1, 0, 1, 1, 1}));
}

TEST(Alternating, MatchesTheWalkForAllSmallPatternsLimitsAndBursts) {
  const std::vector<std::uint64_t> slots{0, 1, 2};
  const std::vector<std::uint64_t> choices{0, 1, 4, 7, kUnbounded};
  for (std::size_t size = 1; size <= 4; ++size) {
    test::for_each_vector(size, slots, [&](const std::vector<std::uint64_t>& entries) {
      const Slots pattern_entries(entries.begin(), entries.end());
      for (const std::uint64_t burst : {1, 2, 3}) {
        test::for_each_vector(3, choices, [&](const std::vector<std::uint64_t>& limits) {
          const Alternating pattern(pattern_entries, 3, burst, limits);
          ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, cursor(pattern_entries, burst, limits, 30)));
        });
      }
    });
  }
}

TEST(Alternating, ManySlotsOfManyLengths) {
  const std::uint32_t num_slots = 500;
  Slots entries;
  std::vector<std::uint64_t> limits;
  std::uint64_t total = 0;
  for (std::uint32_t slot = 0; slot < num_slots; ++slot) {
    for (std::uint32_t i = 0; i <= slot % 3; ++i) {
      entries.push_back(static_cast<std::int32_t>((slot * 7 + i * 131) % num_slots));
    }
    limits.push_back(slot * slot % 97);
    total += limits.back();
  }
  for (const std::uint64_t burst : {1, 4}) {
    const Alternating pattern(entries, num_slots, burst, limits);
    test::expect_draws(pattern, cursor(entries, burst, limits, total));
    test::expect_chunks_agree(pattern, cursor(entries, burst, limits, total).size());
  }
}

TEST(RoundRobin, ChunksAgreeWithAndWithoutLimits) {
  test::expect_chunks_agree(RoundRobin(7), 100'000);
  test::expect_chunks_agree(RoundRobin(7, 5), 100'000);
  test::expect_chunks_agree(RoundRobin(1), 5'000);
  test::expect_chunks_agree(RoundRobin(3, 4, std::vector<std::uint64_t>{1'001, 70'000, 28'999}), 100'000);
}

TEST(RoundRobin, FarStepsStayExact) {
  const std::uint64_t far = (std::uint64_t{1} << 53) + 1;
  const RoundRobin pattern(3, 2, std::vector<std::uint64_t>{5, kUnbounded, kUnbounded});
  const SlotDraw draw = pattern.at(far);
  EXPECT_EQ(pattern.position(draw.slot, draw.index), far);
  EXPECT_EQ(pattern.count(0, far), 5U);
  EXPECT_EQ(pattern.count(1, far) + pattern.count(2, far) + 5, far);
}

TEST(RoundRobin, AHundredThousandSlots) {
  const std::uint32_t num_slots = 100'000;
  std::vector<std::uint64_t> limits(num_slots);
  std::uint64_t total = 0;
  for (std::uint32_t slot = 0; slot < num_slots; ++slot) {
    limits[slot] = slot % 50;
    total += limits[slot];
  }
  const RoundRobin pattern(num_slots, 3, limits);
  ASSERT_EQ(pattern.length(), total);
  const Slots drawn = test::filled(pattern, 0, total);
  test::Counts histogram(num_slots);
  for (std::size_t step = 0; step < drawn.size(); ++step) {
    const std::uint64_t index = histogram[static_cast<std::size_t>(drawn[step])]++;
    if (step % 997 == 0) {
      ASSERT_EQ(pattern.at(step), (SlotDraw{drawn[step], index}));
    }
  }
  EXPECT_EQ(histogram, limits);
}

TEST(Rotation, BadInputIsRefused) {
  EXPECT_THROW(RoundRobin(0), ConfigError);
  EXPECT_THROW(RoundRobin(2, 0), ConfigError);
  EXPECT_THROW(RoundRobin(2, 1, std::vector<std::uint64_t>{1}), ConfigError);
  EXPECT_THROW(Alternating(Slots{}, 2), ConfigError);
  EXPECT_THROW(Alternating(Slots{0, 2}, 2), ConfigError);
  EXPECT_THROW(Alternating(Slots{0, -1}, 2), ConfigError);
}

}  // namespace
}  // namespace mtf
