// Sources that are spent after a number of passes: draws against a count kept by hand, and states.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {
namespace {

struct Case {
  WeightedOrder order;
  std::optional<std::int32_t> heir;
  bool stops = false;
};

/// Sources of 400, 30 and 120 rows; the second may be passed through twice.
MixtureSpec make_spec(const Case& given, std::vector<double> weights = {.5, .3, .2}) {
  MixtureConfig config{.strategy = Strategy::weighted, .order = given.order, .weights = std::move(weights)};
  config.policy = EpochPolicy::fixed_num_steps;
  config.steps_per_epoch = std::int64_t{1} << 60;
  return {.config = std::move(config),
          .sources = {{.name = "a", .length = 400},
                      {.name = "b", .length = 30, .max_passes = 2, .heir = given.heir},
                      {.name = "c", .length = 120}},
          .stops_when_spent = given.stops};
}

std::vector<Draw> read(Schedule& schedule, std::size_t most) {
  std::vector<Draw> draws;
  while (draws.size() < most) {
    const std::optional<Draw> draw = schedule.next();
    if (!draw) {
      break;
    }
    draws.push_back(*draw);
  }
  return draws;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const WeightedOrder order : {WeightedOrder::even, WeightedOrder::shuffled, WeightedOrder::random}) {
    cases.push_back({order, std::nullopt});
    cases.push_back({order, 2});
    cases.push_back({order, std::nullopt, true});
  }
  return cases;
}

TEST(Caps, ASourceGivesItsPassesAndNoBatchMore) {
  for (const Case& given : all_cases()) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      Schedule schedule(make_spec(given), seed);
      const std::vector<Draw> draws = read(schedule, 3000);
      const auto num = std::ranges::count(draws, 1, &Draw::source);
      if (given.stops) {
        ASSERT_LT(draws.size(), 3000U);
        EXPECT_EQ(schedule.end_by(3000, {0}), draws.size());
        EXPECT_EQ(num, 60);
        continue;
      }
      ASSERT_EQ(draws.size(), 3000U);
      EXPECT_EQ(num, 60);
      EXPECT_EQ(schedule.end_by(3000, {0}), std::nullopt);
      for (const Draw& draw : draws) {
        ASSERT_TRUE(draw.source != 1 || draw.pass < 2);
      }
    }
  }
}

TEST(Caps, TheStopComesWithTheFirstDemandForASpentSource) {
  for (const WeightedOrder order : {WeightedOrder::even, WeightedOrder::shuffled, WeightedOrder::random}) {
    MixtureSpec free = make_spec({order, std::nullopt});
    free.sources[1].max_passes.reset();
    Schedule endless(free, 7);
    const std::vector<Draw> draws = read(endless, 3000);
    std::size_t demands = 0;
    const auto demand =
        std::ranges::find_if(draws, [&](const Draw& draw) { return draw.source == 1 && ++demands > 60; });
    Schedule stopping(make_spec({order, std::nullopt, true}), 7);
    const std::vector<Draw> found = read(stopping, 3000);
    ASSERT_EQ(found.size(), static_cast<std::size_t>(demand - draws.begin()));
    EXPECT_TRUE(std::equal(found.begin(), found.end(), draws.begin()));
  }
}

TEST(Caps, OthersAndHeirsTakeTheShare) {
  constexpr double kNum = 6000;
  for (const WeightedOrder order : {WeightedOrder::even, WeightedOrder::shuffled}) {
    const double most = order == WeightedOrder::even ? 2.5 : 12;  // SHUFFLED: within a block of it
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      Schedule others(make_spec({order, std::nullopt}), seed);
      const std::vector<std::uint64_t> by_others = others.counts(6000, {0});
      EXPECT_NEAR(static_cast<double>(by_others[0]), (kNum - 60) * 5 / 7, most);
      Schedule inherited(make_spec({order, 2}), seed);
      const std::vector<std::uint64_t> by_heir = inherited.counts(6000, {0});
      EXPECT_NEAR(static_cast<double>(by_heir[0]), kNum / 2, most);
      EXPECT_EQ(by_heir[1], 60U);
    }
  }
}

TEST(Caps, AnHeirWithoutAWeightTakesOverWhereNothingElseIsLeft) {
  Schedule schedule(make_spec({WeightedOrder::even, 0}, {0, 1, 0}), 1);
  const std::vector<Draw> draws = read(schedule, 100);
  ASSERT_EQ(draws.size(), 100U);
  for (std::size_t step = 0; step < draws.size(); ++step) {
    EXPECT_EQ(draws[step].source, step < 60 ? 1 : 0);
  }
  Schedule ending(make_spec({WeightedOrder::even, std::nullopt}, {0, 1, 0}), 1);
  EXPECT_EQ(read(ending, 100).size(), 60U);
}

TEST(Caps, AStateContinuesAnywhereAndSaysItsFormat) {
  for (const Case& given : all_cases()) {
    Schedule whole(make_spec(given), 3);
    const std::vector<Draw> draws = read(whole, 1000);
    for (std::size_t cut = 0; cut <= draws.size(); cut += 37) {
      Schedule head(make_spec(given), 3);
      ASSERT_EQ(read(head, cut).size(), cut);
      const ScheduleState state = head.state(head.step());
      EXPECT_EQ(version_of(state), 3U);
      const auto bytes = encode(kScheduleKind, version_of(state), to_value(state));
      Schedule tail = Schedule::from_state(
          schedule_state_from(decode(kScheduleKind, kScheduleVersion, std::as_bytes(std::span(bytes))).value));
      const std::vector<Draw> rest = read(tail, 1000 - cut);
      ASSERT_TRUE(std::equal(rest.begin(), rest.end(), draws.begin() + static_cast<std::ptrdiff_t>(cut), draws.end()));
    }
  }
  MixtureSpec free = make_spec({WeightedOrder::even, std::nullopt});
  free.sources[1].max_passes.reset();
  EXPECT_EQ(version_of(Schedule(free, 1).state(0)), 2U);
}

TEST(Caps, AMixtureThatCannotHaveThemIsRefused) {
  const auto refuses = [](auto change) {
    MixtureSpec spec = make_spec({WeightedOrder::even, 2});
    change(spec);
    EXPECT_THROW(Schedule(spec, 1), ConfigError);
  };
  refuses([](MixtureSpec& spec) { spec.config.burst = 2; });
  refuses([](MixtureSpec& spec) { spec.config.cycle = false; });
  refuses([](MixtureSpec& spec) { spec.config.strategy = Strategy::round_robin; });
  refuses([](MixtureSpec& spec) { spec.config.policy = EpochPolicy::sum_of_lengths; });
  refuses([](MixtureSpec& spec) { spec.sources[1].length.reset(); });
  refuses([](MixtureSpec& spec) { spec.sources[1].max_passes = 0; });
  refuses([](MixtureSpec& spec) { spec.sources[1].max_passes = std::uint64_t{1} << 60; });
  refuses([](MixtureSpec& spec) { spec.sources[1].heir = 1; });
  refuses([](MixtureSpec& spec) { spec.sources[1].heir = 3; });
  refuses([](MixtureSpec& spec) { spec.sources[0].per_draw = 0; });
}

}  // namespace
}  // namespace mtf
