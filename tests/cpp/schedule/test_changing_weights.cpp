// EVEN and SHUFFLED while the weights change: what is drawn against the integral of the weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "mtf/error.hpp"
#include "mtf/schedule/epoch_report.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/state/codec.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using Weights = std::vector<double>;

const Weights kFive{.5, .2, .15, .1, .05};

MixtureSpec five_or(std::size_t n, WeightedOrder order, MixtureConfig config = {}) {
  config.strategy = Strategy::weighted;
  config.order = order;
  config.policy = EpochPolicy::fixed_num_steps;
  config.steps_per_epoch = std::int64_t{1} << 40;
  if (config.weights.empty() && !config.curve) {
    config.weights = n == kFive.size() ? kFive : Weights(n, 1.0);
  }
  MixtureSpec spec{std::move(config), {}};
  for (std::size_t i = 0; i < n; ++i) {
    spec.sources.push_back({"s" + std::to_string(i), 1000});
  }
  return spec;
}

/// A number in (0, 1).
double uniform(Stream& stream) { return (static_cast<double>(stream.bounded(std::uint64_t{1} << 40)) + 0.5) / 0x1p40; }

/// Roughly normal, of mean 0 and variance 1.
double normal(Stream& stream) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) {
    sum += uniform(stream);
  }
  return sum;
}

/// Draws one by one and keeps count of each source's deficit.
class Counted {
 public:
  explicit Counted(std::size_t n) : deficits(n) {}

  /// One draw under weights `now`; those of sources that aren't there are 0.
  void draw(Schedule& schedule, const Weights& now) {
    const double sum = std::accumulate(now.begin(), now.end(), 0.0);
    deficits.resize(now.size());
    for (std::size_t i = 0; i < now.size(); ++i) {
      deficits[i] += now[i] / sum;
    }
    const Draw draw = schedule.at(schedule.step(), schedule.epoch());
    schedule.advance(1);
    EXPECT_GT(now[static_cast<std::size_t>(draw.source)], 0.0);
    deficits[static_cast<std::size_t>(draw.source)] -= 1;
    for (const double deficit : deficits) {
      most = std::max(most, deficit);
      least = std::min(least, deficit);
    }
  }

  [[nodiscard]] double largest() const { return std::max(most, -least); }

  std::vector<double> deficits;
  double most = 0;
  double least = 0;
};

/// The largest deviation while `weights(step)` is set before every `every`-th of `num_steps` draws.
template <class Path>
double deviation(WeightedOrder order, int num_steps, int every, Path weights, std::int64_t burst = 1) {
  MixtureConfig config;
  config.burst = burst;
  Schedule schedule(five_or(5, order, config), 7);
  Counted counted(5);
  Weights now = kFive;
  for (int step = 0; step < num_steps; ++step) {
    if (step % every == 0) {
      now = weights(step);
      schedule.update_weights(now);
    }
    counted.draw(schedule, now);
  }
  return counted.largest();
}

struct Paths {
  Stream stream{Key{3}};
  Weights logs = Weights(5);

  Weights jitter(int) {
    Weights out = kFive;
    for (double& weight : out) {
      weight *= 1 + 1e-3 * normal(stream);
    }
    return out;
  }
  Weights walk(int) {
    Weights out = kFive;
    for (std::size_t i = 0; i < out.size(); ++i) {
      logs[i] += 0.015 * normal(stream);
      out[i] *= std::exp(logs[i]);
    }
    return out;
  }
  Weights wild(int) {
    Weights out(5);
    for (double& weight : out) {
      weight = std::exp(3 * normal(stream));
    }
    return out;
  }
};

TEST(ChangingWeights, EvenStaysWithinTwoOfTheIntegral) {
  for (const int every : {1, 4, 16, 64, 300}) {
    Paths paths;
    EXPECT_LT(deviation(WeightedOrder::even, 8000, every, [&](int t) { return paths.jitter(t); }), 1.2) << every;
    EXPECT_LT(deviation(WeightedOrder::even, 8000, every, [&](int t) { return paths.walk(t); }), 1.6) << every;
    EXPECT_LT(deviation(WeightedOrder::even, 8000, every, [&](int t) { return paths.wild(t); }), 2.0) << every;
  }
}

TEST(ChangingWeights, BurstsScaleTheBound) {
  for (const int every : {1, 5, 16}) {
    Paths paths;
    EXPECT_LT(deviation(WeightedOrder::even, 8000, every, [&](int t) { return paths.walk(t); }, 3), 3 * 2.0) << every;
  }
}

TEST(ChangingWeights, ShuffledStaysWithinABlock) {
  for (const int every : {1, 7, 64, 100}) {
    Paths paths;
    EXPECT_LT(deviation(WeightedOrder::shuffled, 20'000, every, [&](int t) { return paths.walk(t); }), 18.0) << every;
  }
  // At the end of every block the draws are EVEN's.
  Paths paths;
  Schedule schedule(five_or(5, WeightedOrder::shuffled), 1);
  Counted counted(5);
  double largest = 0;
  for (int step = 0; step < 64 * 200; ++step) {
    const Weights now = paths.jitter(step);
    schedule.update_weights(now);
    counted.draw(schedule, now);
    if (step % 64 == 63) {
      const auto [least, most] = std::ranges::minmax(counted.deficits);
      largest = std::max({largest, most, -least});
    }
  }
  EXPECT_LT(largest, 2.0);
}

/// Weights that answer the draws, so that the last of the sources to be drawn waits as long as it can.
TEST(ChangingWeights, NoAnswerToTheDrawsGetsBeyondTheHarmonicBound) {
  double harmonic = 1;
  for (std::size_t n = 2; n <= 12; ++n) {
    harmonic += 1.0 / static_cast<double>(n);
    Stream stream(Key{n});
    Schedule schedule(five_or(n, WeightedOrder::even), 2);
    Counted counted(n);
    std::size_t num_heavy = n;
    for (int step = 0; step < 2500; ++step) {
      std::vector<std::size_t> order(n);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return counted.deficits[a] > counted.deficits[b]; });
      if (num_heavy < 2) {
        num_heavy = stream.bounded(4) > 0 ? n : 2 + stream.bounded(n - 1);
      }
      Weights now(n, 1e-9);
      for (std::size_t i = 0; i < num_heavy; ++i) {
        now[order[i]] = 1;
      }
      --num_heavy;
      schedule.update_weights(now);
      counted.draw(schedule, now);
    }
    EXPECT_LT(counted.most, harmonic - 1 + 1e-5) << n;
    EXPECT_GT(counted.least, -1.0) << n;
    EXPECT_GT(counted.most, harmonic - 1 - 0.25) << n << ": the weights of this test are too tame";
  }
}

TEST(ChangingWeights, CurvesOfBothKindsStayWithinTwo) {
  for (const Interpolation kind : {Interpolation::step, Interpolation::linear}) {
    WeightCurve curve{.points = {}, .interpolation = kind, .every = 1};
    curve.points.push_back({0, {.6, .15, .15, .08, .02}});
    curve.points.push_back({2500, {.2, .1, .2, .35, .15}});
    curve.points.push_back({5000, {.2, 0, .2, .35, .25}});
    curve.points.push_back({7000, {0, .3, .2, .35, .15}});
    MixtureConfig config;
    config.curve = curve;
    Schedule schedule(five_or(5, WeightedOrder::even, config), 3);
    Counted counted(5);
    for (std::uint64_t step = 0; step < 8000; ++step) {
      counted.draw(schedule, curve.at(step));
    }
    EXPECT_LT(counted.largest(), 2.0);
  }
}

/// A source that comes has no deficit; one that goes leaves its own, less than 2, to the others.
TEST(ChangingWeights, SourcesThatComeAndGoShiftTheOthersByWhatTheyWereOwed) {
  Stream stream(Key{5});
  Schedule schedule(five_or(5, WeightedOrder::even), 4);
  Counted counted(5);
  Weights now = kFive;
  for (int step = 0; step < 6000; ++step) {
    if (step % 20 == 0) {
      const std::size_t i = stream.bounded(5);
      const std::string name = "s" + std::to_string(i);
      const bool is_here = schedule.spec().sources[i].present;
      if (is_here && schedule.spec().num_present() > 2) {
        schedule.remove_source(name);
        const double left_behind = counted.deficits[i];
        now[i] = 0;
        counted.deficits[i] = 0;
        const double sum = std::accumulate(now.begin(), now.end(), 0.0);
        for (std::size_t other = 0; other < now.size(); ++other) {
          counted.deficits[other] += left_behind * now[other] / sum;
        }
      } else if (!is_here) {
        schedule.add_source(name, 1000, kFive[i]);
        now[i] = kFive[i];
      }
    }
    counted.draw(schedule, now);
  }
  EXPECT_LT(counted.largest(), 2.0);
}

/// A weight of 0 for a while: never drawn then, and the deficit from before is made up for later.
TEST(ChangingWeights, ASourceOfWeightZeroKeepsWhatItIsOwed) {
  Schedule schedule(five_or(5, WeightedOrder::even), 4);
  Counted counted(5);
  for (int step = 0; step < 4000; ++step) {
    Weights now = kFive;
    if (step % 3 != 0) {
      now[4] = 0;
    }
    schedule.update_weights(now);
    counted.draw(schedule, now);
  }
  EXPECT_LT(counted.largest(), 2.0);
}

TEST(ChangingWeights, ReportsACertificateThatHolds) {
  WeightCurve curve{.points = {{0, {.6, .15, .15, .08, .02}}, {900, {.2, .1, .2, .35, .15}}},
                    .interpolation = Interpolation::linear,
                    .every = 7};
  MixtureConfig config;
  config.curve = curve;
  MixtureSpec spec = five_or(5, WeightedOrder::even, config);
  spec.config.steps_per_epoch = 1000;
  Schedule schedule(spec, 3);
  const auto ranges = schedule.ranges({0}, 0, 1000);
  const EpochReport report = make_report(ranges);
  EXPECT_GT(report.deviation_bound, 0.5);
  EXPECT_LT(report.deviation_bound, 2.0);
  for (const SourceReport& source : report.sources) {
    EXPECT_LE(source.max_deviation, report.deviation_bound);
  }
}

/// Every view of a pattern that continues another one, with limits and bursts.
TEST(ChangingWeights, AllViewsOfAContinuedPatternAgree) {
  constexpr std::int64_t kOne = std::int64_t{1} << kDeficitBits;
  const std::vector<std::uint32_t> weights{7, 2, 1};
  const std::vector<std::vector<std::int64_t>> deficits{
      {0, 0, 0}, {kOne / 3, -kOne / 3, 0}, {9 * kOne, -5 * kOne, -4 * kOne}, {0, kOne / 2, kOne / 3}};
  for (const auto& each : deficits) {
    for (const std::uint64_t burst : {1, 3}) {
      for (const std::vector<std::uint64_t>& limits :
           {std::vector<std::uint64_t>{}, {40, 7, 80}, {3, 100, 5}, {kUnbounded, 1, 30}}) {
        const auto check = [&](const auto& pattern) {
          const std::uint64_t most = std::min<std::uint64_t>(pattern.length(), 300);
          test::Slots expected;
          for (std::uint64_t step = 0; step < most; ++step) {
            expected.push_back(pattern.at(step).slot);
          }
          ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, expected));
        };
        check(WeightedEven(weights, {}, burst, limits, Key{4}, each));
        for (const std::uint32_t num_before : {0U, 1U, 63U}) {
          check(WeightedShuffled(weights, {}, burst, limits, Key{4}, each, num_before));
        }
      }
    }
  }
}

TEST(ChangingWeights, ResumesExactlyBetweenChanges) {
  for (const WeightedOrder order : {WeightedOrder::even, WeightedOrder::shuffled}) {
    Paths paths;
    Schedule schedule(five_or(5, order), 11);
    for (int step = 0; step < 300; ++step) {
      if (step % 3 == 0) {
        schedule.update_weights(paths.wild(step));
      }
      const ScheduleState state = schedule.state(schedule.step());
      Schedule again = Schedule::from_state(schedule_state_from(to_value(state)));
      std::vector<std::int32_t> expected(100);
      std::vector<std::int32_t> drawn(100);
      Schedule::fill(schedule.ranges({0}, schedule.step(), schedule.step() + 100), expected);
      Schedule::fill(again.ranges({0}, schedule.step(), schedule.step() + 100), drawn);
      ASSERT_EQ(drawn, expected) << step;
      ASSERT_EQ(again.fingerprints(), schedule.fingerprints());
      ASSERT_EQ(to_value(again.state(again.step())), to_value(state));
      schedule.advance(1);
    }
  }
}

TEST(ChangingWeights, StatesDontGrowWithEdits) {
  Paths paths;
  Schedule schedule(five_or(5, WeightedOrder::even), 11);
  std::vector<std::size_t> sizes;
  for (int step = 0; step < 6000; ++step) {
    schedule.update_weights(paths.jitter(step));
    schedule.advance(1);
    if (step == 30 || step == 5999) {
      const ScheduleState state = schedule.state(schedule.step());
      sizes.push_back(encode(kScheduleKind, version_of(state), to_value(state)).size());
    }
  }
  EXPECT_LT(sizes[1], sizes[0] + 40) << "numbers get longer, nothing else";
  EXPECT_GT(schedule.known_from({0}), 0U);
  EXPECT_THROW((void)schedule.at(0, {0}), ConfigError) << "what happened so long ago isn't kept";
  EXPECT_NO_THROW((void)schedule.expected_counts(schedule.step(), {0}));
}

/// Sources alone and the counts around them are those of complete draws, through changes of the weights and edits.
TEST(ChangingWeights, SourcesAloneAreThoseOfDraws) {
  for (const std::size_t n : {5, 70}) {  // counted in tables of their own, and one by one
    Schedule schedule(five_or(n, WeightedOrder::shuffled), 7);
    for (const std::uint64_t edit : {100, 101, 900}) {
      schedule.seek({0}, edit);
      schedule.set_weight("s1", 0.1 * static_cast<double>(edit % 7 + 1));
    }
    schedule.add_source("late", 37, 0.5);
    for (const std::uint64_t begin : {0, 64, 99, 850, 5000}) {
      schedule.seek({0}, begin);
      constexpr std::size_t kNum = 513;
      std::vector<std::int32_t> wanted(kNum), sources(kNum);
      std::vector<std::int64_t> passes(kNum), batches(kNum);
      ASSERT_EQ(schedule.draws(wanted, passes, batches), kNum);
      const std::vector<Schedule::SegmentDraws> drawn = schedule.source_draws(sources);
      EXPECT_EQ(sources, wanted);
      std::size_t k = 0;
      for (const Schedule::SegmentDraws& part : drawn) {
        std::vector<std::uint64_t> counts = part.before;
        for (const std::size_t end = k + part.size; k < end; ++k) {
          const auto i = static_cast<std::size_t>(wanted[k]);
          const PassPosition after = part.segment->pass_position(i, ++counts[i]);
          ASSERT_EQ(after.pass, static_cast<std::uint64_t>(passes[k]));
          ASSERT_EQ(after.batch, static_cast<std::uint64_t>(batches[k]) + 1);
        }
        EXPECT_EQ(counts, part.after);
      }
      EXPECT_EQ(k, kNum);
    }
  }
}

}  // namespace
}  // namespace mtf
