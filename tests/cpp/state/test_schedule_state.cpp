// States of schedules: exact after any cut, refused field by field, and harmless whatever is in them.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/state/codec.hpp"

namespace mtf {
namespace {

MixtureSpec spec_of(const std::vector<std::uint64_t>& lengths, MixtureConfig config = {}) {
  MixtureSpec spec{std::move(config), {}};
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto length = lengths[i] == kUnbounded ? std::nullopt : std::optional(lengths[i]);
    spec.sources.push_back({std::string(1, static_cast<char>('A' + i)), length});
  }
  return spec;
}

std::vector<Schedule> samples() {
  std::vector<Schedule> out;
  out.emplace_back(spec_of({3, 5, 4}, {.burst = 2}), 1);
  out.back().seek({2}, 5);

  out.emplace_back(spec_of({kUnbounded, 9, kUnbounded}, {.cycle = false}), 2);
  out.back().advance(3);
  out.back().end_pass(0, 1);
  out.back().advance(2);

  for (const WeightedOrder order : {WeightedOrder::random, WeightedOrder::shuffled, WeightedOrder::even}) {
    MixtureConfig config{.strategy = Strategy::weighted, .order = order, .weights = {5, 3, 2}};
    config.policy = EpochPolicy::fixed_num_steps;
    config.steps_per_epoch = 50;
    out.emplace_back(spec_of({30, 7, 11}, config), ~std::uint64_t{0});
    out.back().seek({1}, 10);
    out.back().add_source("D", 6, 4.0);
    out.back().advance(10);
    out.back().remove_source("B");
    out.back().advance(5);
    out.back().set_weight("A", 1);
    out.back().advance(3);

    config.weights.clear();
    config.curve = WeightCurve{.points = {{0, {7, 2, 1}}, {90, {2, 2, 6}}}, .interpolation = Interpolation::linear};
    config.curve->every = 20;
    out.emplace_back(spec_of({20, 30, 40}, config), 5);
    out.back().seek({1}, 17);
  }
  return out;
}

std::vector<Draw> draws_from(Schedule& schedule, std::size_t num_draws) {
  std::vector<Draw> out;
  while (out.size() < num_draws) {
    const std::optional<Draw> draw = schedule.next();
    if (draw) {
      out.push_back(*draw);
    } else {
      schedule.next_epoch();
    }
  }
  return out;
}

ScheduleState through_bytes(const ScheduleState& state) {
  const std::string bytes = encode(kScheduleKind, version_of(state), to_value(state));
  const Decoded decoded = decode(kScheduleKind, kScheduleVersion, std::as_bytes(std::span(bytes)));
  return schedule_state_from(decoded.value, decoded.version);
}

TEST(ScheduleState, GoesOnExactly) {
  for (Schedule& schedule : samples()) {
    const auto initial = schedule.initial();
    Schedule alone = Schedule::from_state(through_bytes(schedule.state(schedule.step())));
    Schedule loaded(initial, schedule.seed());
    loaded.load(through_bytes(schedule.state(schedule.step())));
    EXPECT_TRUE(to_value(alone.state(alone.step())) == to_value(schedule.state(schedule.step())));
    EXPECT_EQ(loaded.fingerprints(), schedule.fingerprints());
    // The mixture with unknown lengths has 9 + 1 steps that need no end found at run time.
    const std::vector<Draw> expected = draws_from(schedule, !initial.sources[0].length ? 20 : 200);
    EXPECT_EQ(draws_from(alone, expected.size()), expected);
    EXPECT_EQ(draws_from(loaded, expected.size()), expected);
  }
}

TEST(ScheduleState, CutAfterCutChangesNothing) {
  for (Schedule& schedule : samples()) {
    Schedule cut = Schedule::from_state(through_bytes(schedule.state(schedule.step())));
    for (int k = 0; k < 20; ++k) {
      cut = Schedule::from_state(through_bytes(cut.state(cut.step())));
      EXPECT_EQ(draws_from(cut, 1), draws_from(schedule, 1)) << k;
    }
  }
}

TEST(ScheduleState, OfAnEarlierStepForgetsWhatCameLater) {
  Schedule schedule(spec_of({9, 9}), 0);
  schedule.advance(4);
  const Value early = to_value(schedule.state(4));
  schedule.advance(2);
  schedule.remove_source("A");
  EXPECT_TRUE(to_value(schedule.state(4)) == early);
  EXPECT_THROW((void)schedule.state(7), ConfigError);
}

TEST(ScheduleState, NamesEveryDifference) {
  Schedule mine(spec_of({3, 5}), 0);
  mine.advance(3);
  const Value before = to_value(mine.state(3));
  auto other = spec_of({3, 6, 7}, {.burst = 2});
  other.sources[2].name = "X";
  Schedule theirs(other, 4);
  try {
    mine.load(theirs.state(0));
    FAIL();
  } catch (const StateMismatch& error) {
    const std::string message = error.what();
    for (const char* line : {"seed: 4 in the state, 0 here", "length of 'B': 6 in the state, 5 here",
                             "dataloader_names: 'X' is in the state, not here", "burst_size: 2 in the state, 1 here"}) {
      EXPECT_NE(message.find(line), std::string::npos) << line << " in " << message;
    }
  }
  EXPECT_TRUE(to_value(mine.state(3)) == before);
}

TEST(ScheduleState, CountsOfDrawsThatRunOutInBurstsAreChecked) {
  const MixtureConfig config{.strategy = Strategy::weighted, .weights = {1, 1}, .burst = 2, .cycle = false};
  Schedule schedule(spec_of({10, 10}, config), 0);
  schedule.remove_source("B");
  schedule.advance(2);
  ScheduleState state = schedule.state(2);
  ASSERT_EQ(state.counts, (std::vector<std::uint64_t>{2, 0}));
  state.counts = {1, 1};
  EXPECT_THROW((void)Schedule::from_state(state), StateMismatch);
}

/// `value` with one part of it, somewhere, replaced by something odd.
Value mutated(const Value& value, Stream& random) {
  if (const auto* map = std::get_if<ValueMap>(&value.data()); map && !map->empty() && random.bounded(10) != 0) {
    ValueMap out = *map;
    auto& [name, part] = out[random.bounded(static_cast<std::uint32_t>(out.size()))];
    part = mutated(part, random);
    return out;
  }
  if (const auto* list = std::get_if<ValueList>(&value.data()); list && !list->empty() && random.bounded(5) != 0) {
    ValueList out = *list;
    Value& part = out[random.bounded(static_cast<std::uint32_t>(out.size()))];
    part = mutated(part, random);
    return out;
  }
  const std::vector<Value> odd = {Value(),
                                  true,
                                  std::uint64_t{0},
                                  std::uint64_t{1},
                                  std::uint64_t{2},
                                  std::uint64_t{17},
                                  std::uint64_t{1} << 31,
                                  (std::uint64_t{1} << 62) - 1,
                                  ~std::uint64_t{0},
                                  1e300,
                                  -1.0,
                                  "x",
                                  "WEIGHTED",
                                  ValueList{},
                                  ValueMap{},
                                  ValueList{std::uint64_t{0}}};
  return odd[random.bounded(static_cast<std::uint32_t>(odd.size()))];
}

TEST(ScheduleState, MalformedStatesAreRefusedOrHarmless) {
  Stream random(Key{7});
  int num_refused = 0;
  for (Schedule& schedule : samples()) {
    const Value state = to_value(schedule.state(schedule.step()));
    for (int k = 0; k < 400; ++k) {
      try {
        Schedule odd = Schedule::from_state(schedule_state_from(mutated(state, random)));
        std::vector<std::int32_t> sources(50);
        std::vector<std::int64_t> passes(50);
        std::vector<std::int64_t> batches(50);
        (void)odd.draws(sources, passes, batches);
        (void)odd.fingerprints();
      } catch (const StateMismatch& error) {
        ++num_refused;
        EXPECT_GT(std::string(error.what()).size(), 10u);
      }
    }
  }
  EXPECT_GT(num_refused, 1000);
}

}  // namespace
}  // namespace mtf
