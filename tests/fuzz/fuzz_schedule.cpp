// Random configurations against plain counting: what `at`, `fill` and `counts` say at any step is what a walk from the
// start finds; a source gives its batches in order; a state read back goes on as the schedule it was taken from.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/schedule/schedule_state.hpp"

namespace {

/// Small numbers from the fuzzer's bytes; zeros when they are used up.
class Choices {
 public:
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::uint32_t below(std::uint32_t n) {
    const std::uint32_t value = used_ < bytes_.size() ? bytes_[used_] : 0;
    ++used_;
    return value % n;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t used_ = 0;
};

mtf::Setup make_setup(Choices& choose) {
  mtf::Setup setup;
  const std::uint32_t n = 1 + choose.below(6);
  for (std::uint32_t i = 0; i < n; ++i)
    setup.sources.push_back({.name = "s" + std::to_string(i), .length = 1 + choose.below(12)});
  auto& config = setup.config;
  config.strategy = static_cast<mtf::Strategy>(choose.below(4));
  config.order = static_cast<mtf::WeightedOrder>(choose.below(3));
  if (config.strategy == mtf::Strategy::weighted) {
    for (std::uint32_t i = 0; i < n; ++i) config.weights.push_back(choose.below(8));
  }
  if (config.strategy == mtf::Strategy::alternating) {
    for (std::uint32_t i = 0; i < 1 + choose.below(6); ++i)
      config.pattern.push_back(static_cast<std::int32_t>(choose.below(n)));
  }
  config.burst = 1 + choose.below(4);
  config.policy = static_cast<mtf::EpochPolicy>(choose.below(4));
  if (config.policy == mtf::EpochPolicy::fixed_num_steps) config.steps_per_epoch = 1 + choose.below(60);
  config.cycle = choose.below(2) == 0;
  if (choose.below(3) == 0) config.continue_across_epochs = choose.below(2) == 0;
  return setup;
}

void require(bool holds) {
  if (!holds) std::abort();
}

void check_epoch(mtf::Schedule& schedule, std::uint64_t epoch, std::uint64_t first, std::uint64_t num_steps) {
  std::vector<std::int32_t> sources(num_steps);
  mtf::Schedule::fill(schedule.pieces(epoch, 0, num_steps), sources);
  std::vector<std::uint64_t> counted(schedule.initial().sources.size(), 0);
  std::vector<std::optional<mtf::Draw>> last(counted.size());
  for (std::uint64_t step = 0; step < num_steps; ++step) {
    if (step >= first) require(schedule.counts(step, epoch) == counted);
    const mtf::Draw draw = schedule.at(step, epoch);
    require(draw.source == sources[step]);
    auto& before = last[static_cast<std::size_t>(draw.source)];
    if (before) {
      const bool next_batch = draw.pass == before->pass && draw.batch == before->batch + 1;
      const bool next_pass = draw.pass == before->pass + 1 && draw.batch == 0;
      require(next_batch || next_pass);
      require(next_batch ==
              (before->batch + 1 < schedule.initial().sources[static_cast<std::size_t>(draw.source)].length));
    }
    before = draw;
    ++counted[static_cast<std::size_t>(draw.source)];
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choose(std::span(data, size));
  std::optional<mtf::Schedule> made;
  try {
    made.emplace(make_setup(choose), choose.below(256));
  } catch (const mtf::ConfigError&) {
    return 0;
  }
  mtf::Schedule& schedule = *made;
  for (const std::uint64_t epoch : {0, 1})
    check_epoch(schedule, epoch, 0, std::min<std::uint64_t>(schedule.num_steps(epoch), 200));

  const std::uint64_t num_steps = schedule.num_steps(0);
  if (num_steps == 0) return 0;
  const std::uint64_t cut = choose.below(255) % num_steps;
  schedule.advance(cut);
  auto again =
      mtf::Schedule::from_state(mtf::schedule_state_from(to_value(schedule.state(cut)), mtf::kScheduleVersion));
  for (std::uint64_t step = cut; step < std::min<std::uint64_t>(num_steps, cut + 50); ++step) {
    require(again.at(step, 0) == schedule.at(step, 0));
  }
  return 0;
}
