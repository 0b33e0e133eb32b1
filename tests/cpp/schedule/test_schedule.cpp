// Whole schedules: where epochs end, edits, ends of passes found at run time, curves, and that every view agrees.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/schedule/schedule.hpp"

namespace mtf {
namespace {

using Lengths = std::vector<std::uint64_t>;

MixtureSpec spec_of(const Lengths& lengths, MixtureConfig config = {}) {
  MixtureSpec spec{std::move(config), {}};
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto length = lengths[i] == kUnbounded ? std::nullopt : std::optional(lengths[i]);
    spec.sources.push_back({std::string(1, static_cast<char>('A' + i)), length});
  }
  return spec;
}

/// The steps of an epoch as letters.
std::string shown(Schedule& schedule, mtf::EpochIndex epoch = {}) {
  std::vector<std::int32_t> sources(schedule.num_steps(epoch).value());
  Schedule::fill(schedule.ranges(epoch, 0, sources.size()), sources);
  std::string out;
  for (const std::int32_t source : sources) {
    out += static_cast<char>('A' + source);
  }
  return out;
}

std::string shown(const Lengths& lengths, const MixtureConfig& config) {
  Schedule schedule(spec_of(lengths, config), 0);
  return shown(schedule);
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Schedule, EndsEpochsAsThePolicySays) {
  EXPECT_EQ(shown({3, 5}, {}), "ABABABAB");
  EXPECT_EQ(shown({3, 5}, {.cycle = false}), "ABABABBB");
  EXPECT_EQ(shown({3, 5}, {.policy = EpochPolicy::min_length}), "ABABAB");
  EXPECT_EQ(shown({3, 5}, {.policy = EpochPolicy::max_length}), "ABABABABAB");
  EXPECT_EQ(shown({3, 5}, {.policy = EpochPolicy::fixed_num_steps, .steps_per_epoch = 5}), "ABABA");
  EXPECT_EQ(shown({3, 5}, {.policy = EpochPolicy::fixed_num_steps, .steps_per_epoch = 99, .cycle = false}), "ABABABBB");
  EXPECT_EQ(shown({3, 5}, {.strategy = Strategy::sequential}), "AAABBBBB");
  EXPECT_EQ(shown({3, 5}, {.strategy = Strategy::sequential, .policy = EpochPolicy::min_length}), "AAABBB");
  EXPECT_EQ(shown({3, 5}, {.strategy = Strategy::sequential, .policy = EpochPolicy::max_length}), "AAAAABBBBB");
  EXPECT_EQ(shown({4, 5}, {.strategy = Strategy::alternating, .pattern = {0, 0, 1}, .policy = EpochPolicy::min_length}),
            "AABAAB");
  EXPECT_EQ(shown({3, 5}, {.burst = 2, .cycle = false}), "AABBABBB");
}

/// Every configuration with a few small values of each option.
void for_each_config(const std::function<void(const MixtureConfig&)>& use) {
  for (const Strategy strategy :
       {Strategy::round_robin, Strategy::weighted, Strategy::alternating, Strategy::sequential}) {
    for (const WeightedOrder order : {WeightedOrder::random, WeightedOrder::shuffled, WeightedOrder::even}) {
      if (strategy != Strategy::weighted && order != WeightedOrder::random) {
        continue;
      }
      for (const EpochPolicy policy : {EpochPolicy::sum_of_lengths, EpochPolicy::max_length, EpochPolicy::min_length,
                                       EpochPolicy::fixed_num_steps}) {
        for (const bool cycle : {true, false}) {
          for (const std::int64_t burst : {1, 3}) {
            MixtureConfig config{
                .strategy = strategy, .order = order, .burst = burst, .policy = policy, .cycle = cycle};
            if (strategy == Strategy::weighted) {
              config.weights = {0.5, 0.2, 0.3};
            }
            if (strategy == Strategy::alternating) {
              config.pattern = {0, 2, 0, 1};
            }
            if (policy == EpochPolicy::fixed_num_steps) {
              config.steps_per_epoch = 23;
            }
            use(config);
          }
        }
      }
    }
  }
}

// A step beside an epoch can't be taken for it.
static_assert(!std::is_convertible_v<std::uint64_t, mtf::EpochIndex>);
static_assert(!std::is_invocable_v<decltype(&Schedule::at), Schedule&, mtf::EpochIndex, std::uint64_t>);
static_assert(!std::is_invocable_v<decltype(&Schedule::seek), Schedule&, std::uint64_t, mtf::EpochIndex>);

/// Every draw of epochs 0 to 2 from next(), against all other ways to ask for it.
void check_views(Schedule& schedule, Schedule& walked) {
  std::vector<std::int64_t> last_batch(3, -1);
  for (mtf::EpochIndex epoch; epoch.value < 3; epoch = epoch.next()) {
    const std::uint64_t num_steps = schedule.num_steps(epoch).value();
    ASSERT_LT(num_steps, 1000u);
    std::vector<std::uint64_t> counts(3);
    std::uint64_t step = 0;
    while (const auto draw = walked.next()) {
      ASSERT_EQ(schedule.at(step, epoch), *draw);
      ASSERT_EQ(schedule.counts(step, epoch), counts);
      const mtf::PassPosition place{.pass = draw->pass, .batch = draw->batch};
      const auto source = static_cast<std::size_t>(draw->source);
      ASSERT_EQ(schedule.step_of(source, place, num_steps, epoch), step);
      ASSERT_EQ(schedule.step_of(source, place, step, epoch), std::nullopt);
      ++counts[static_cast<std::size_t>(draw->source)];
      ++step;
    }
    ASSERT_EQ(step, num_steps);
    ASSERT_EQ(schedule.counts(step, epoch), counts);
    ASSERT_EQ(shown(schedule, epoch).size(), num_steps);
    EXPECT_THROW((void)schedule.at(num_steps, epoch), ConfigError);
    walked.next_epoch();
  }
}

TEST(Schedule, AllViewsOfAllConfigurationsAgree) {
  int num_configs = 0;
  for_each_config([&](const MixtureConfig& config) {
    Schedule schedule(spec_of({7, 4, 9}, config), 11);
    Schedule walked(spec_of({7, 4, 9}, config), 11);
    check_views(schedule, walked);
    ++num_configs;
  });
  EXPECT_EQ(num_configs, 96);
}

TEST(Schedule, EditsTakeEffectAtTheCursor) {
  Schedule schedule(spec_of({4, 4}), 0);
  schedule.advance(3);
  EXPECT_TRUE(schedule.remove_source("A"));
  EXPECT_EQ(shown(schedule), "ABABBB");
  EXPECT_TRUE(schedule.add_source("C", 2, {}));
  EXPECT_EQ(shown(schedule), "ABABCBCB");
  schedule.advance(1);
  EXPECT_TRUE(schedule.set_config({.strategy = Strategy::sequential}));
  EXPECT_EQ(schedule.num_steps({0}), 8u);
  schedule.seek({0}, 8);
  schedule.next_epoch();
  EXPECT_EQ(shown(schedule, {1}), "BBBBCC");
  EXPECT_EQ(schedule.at(0, {0}).source, 0);
  EXPECT_TRUE(schedule.remove_source("C"));
  EXPECT_THROW((void)schedule.at(0, {0}), ConfigError);
}

TEST(Schedule, RoundsBeginForSourcesThatLeftToo) {
  Schedule schedule(
      spec_of({4, 4},
              {.strategy = Strategy::sequential, .policy = EpochPolicy::fixed_num_steps, .steps_per_epoch = 16}),
      0);
  schedule.advance(2);
  EXPECT_TRUE(schedule.remove_source("A"));
  EXPECT_EQ(shown(schedule), "AABBBBBBBBBBBBBB");
  schedule.advance(6);
  EXPECT_TRUE(schedule.add_source("A", 4, {}));
  EXPECT_EQ(shown(schedule), "AABBBBBBAAAABBAA") << "A's whole block and what B has left of the second round";
}

TEST(Schedule, EditsThatChangeNothingAppendNothing) {
  Schedule schedule(spec_of({4, 4}, {.strategy = Strategy::weighted, .weights = {1, 2}}), 0);
  schedule.advance(3);
  EXPECT_FALSE(schedule.update_weights(std::vector<double>{1, 2}));
  EXPECT_FALSE(schedule.set_weight("B", 2));
  EXPECT_FALSE(schedule.set_config(schedule.spec().config));
  EXPECT_TRUE(schedule.state(3).log.events().empty());
  EXPECT_TRUE(schedule.set_weight("B", 3));
  EXPECT_EQ(schedule.state(3).log.size(), 1u);
}

TEST(Schedule, RefusedEditsChangeNothing) {
  Schedule schedule(spec_of({4, 4}, {.strategy = Strategy::weighted, .weights = {1, 2}}), 0);
  schedule.advance(3);
  const Value before = to_value(schedule.state(3));
  EXPECT_EQ(error_of([&] { schedule.update_weights(std::vector<double>{1}); }),
            "dataloader_weights must have one weight per dataloader (2), got 1");
  EXPECT_EQ(error_of([&] { schedule.set_weight("A", -1); }),
            "dataloader_weights[0] ('A') must be finite and not negative, got -1");
  EXPECT_EQ(error_of([&] { schedule.remove_source("X"); }), "there is no dataloader 'X' (known: A, B)");
  EXPECT_EQ(error_of([&] { schedule.add_source("C", 0, 1.0); }),
            "dataloader 'C' (index 2) is empty: it must have at least one batch, got 0");
  EXPECT_THROW(schedule.end_pass(2, 0), ConfigError);
  EXPECT_THROW(schedule.end_pass(0, 77), ConfigError);
  EXPECT_THROW(schedule.advance(6), ConfigError);
  EXPECT_THROW(schedule.next_epoch(), ConfigError);
  EXPECT_TRUE(to_value(schedule.state(3)) == before);
}

TEST(Schedule, PassesEndAtRunTime) {
  Schedule cycling(spec_of({kUnbounded, 4}, {.policy = EpochPolicy::fixed_num_steps, .steps_per_epoch = 8}), 0);
  EXPECT_EQ(cycling.num_steps({0}), 8u);
  cycling.advance(4);
  cycling.end_pass(0, 2);
  EXPECT_EQ(cycling.at(4, {0}), (Draw{4, 0, 1, 0}));
  EXPECT_EQ(cycling.at(6, {0}), (Draw{6, 0, 1, 1}));

  Schedule leaving(spec_of({kUnbounded, 4}, {.cycle = false}), 0);
  EXPECT_EQ(leaving.num_steps({0}), std::nullopt);
  leaving.advance(4);
  leaving.end_pass(0, 2);
  EXPECT_EQ(shown(leaving), "ABABBB");

  Schedule ending(spec_of({kUnbounded, 4}, {.policy = EpochPolicy::min_length}), 0);
  EXPECT_EQ(ending.num_steps({0}), std::nullopt) << "what is known is only a bound";
  ending.advance(4);
  EXPECT_FALSE(ending.epoch_done());
  ending.end_pass(0, 2);
  EXPECT_TRUE(ending.epoch_done());
  EXPECT_EQ(shown(ending), "ABAB");
}

TEST(Schedule, CurvesChangeTheWeightsOnTime) {
  MixtureConfig config{.strategy = Strategy::weighted, .policy = EpochPolicy::fixed_num_steps, .steps_per_epoch = 8};
  config.curve = WeightCurve{.points = {{0, {1, 0}}, {5, {0, 1}}, {12, {1, 0}}}, .interpolation = Interpolation::step};
  Schedule stepped(spec_of({30, 30}, config), 0);
  EXPECT_EQ(shown(stepped, {0}), "AAAAABBB");
  EXPECT_EQ(shown(stepped, {1}), "BBBBAAAA");
  config.curve->interpolation = Interpolation::linear;
  config.curve->every = 1;
  config.steps_per_epoch = std::int64_t{1} << 40;
  Schedule smooth(spec_of({30, 30}, config), 0);
  EXPECT_EQ(smooth.num_steps({0}), std::uint64_t{1} << 40) << "without a segment for every step";
  EXPECT_EQ(smooth.at(0, {0}).source, 0);
  EXPECT_EQ(smooth.at(5, {0}).source, 1);
}

TEST(Schedule, PiecesAreFilledBesideEachOther) {
  Schedule schedule(spec_of({70, 400, 90}, {.strategy = Strategy::weighted,
                                            .order = WeightedOrder::shuffled,
                                            .weights = {0.5, 0.2, 0.3},
                                            .policy = EpochPolicy::fixed_num_steps,
                                            .steps_per_epoch = 10000}),
                    3);
  const auto ranges = schedule.ranges({0}, 0, 10000);
  std::vector<std::int32_t> alone(10000);
  Schedule::fill(ranges, alone);
  std::vector<std::vector<std::int32_t>> together(4, std::vector<std::int32_t>(10000));
  std::vector<std::thread> threads;
  for (auto& out : together) {
    threads.emplace_back([&ranges, &out] { Schedule::fill(ranges, out); });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& out : together) {
    EXPECT_EQ(out, alone);
  }
}

TEST(Schedule, FarEpochsAreApproachedInParts) {
  Schedule parts(spec_of({3, 5}, {.continue_across_epochs = true}), 0);
  Schedule whole(spec_of({3, 5}, {.continue_across_epochs = true}), 0);
  int num_parts = 0;
  for (; !parts.approach({1000}, 64); ++num_parts) {
  }
  EXPECT_EQ(num_parts, 15);
  EXPECT_EQ(parts.at(2, {1000}), whole.at(2, {1000}));
  EXPECT_FALSE(parts.approach({900}, 64)) << "only the last ones are kept";
  EXPECT_EQ(parts.at(1, {900}), whole.at(1, {900}));
  EXPECT_TRUE(parts.approach({0}, 64));
  parts.seek({900}, 0);
  EXPECT_TRUE(parts.remove_source("A"));
  EXPECT_TRUE(parts.approach({5}, 64));
  EXPECT_THROW((void)parts.at(0, {5}), ConfigError);
}

TEST(Schedule, HugeEpochsCostNothing) {
  const std::uint64_t huge = std::uint64_t{1} << 60;
  for (const WeightedOrder order : {WeightedOrder::shuffled, WeightedOrder::even}) {
    Schedule schedule(spec_of({huge, huge, 5}, {.strategy = Strategy::weighted, .order = order, .weights = {5, 3, 1}}),
                      0);
    EXPECT_EQ(schedule.num_steps({0}), 2 * huge + 5);
    const std::uint64_t step = 2 * huge;
    const auto counts = schedule.counts(step, {0});
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}), step);
    schedule.seek({0}, step);
    EXPECT_EQ(schedule.next(), schedule.at(step, {0}));
  }
  EXPECT_THROW(Schedule(spec_of({std::uint64_t{1} << 62}), 0), ConfigError);
}

}  // namespace
}  // namespace mtf
