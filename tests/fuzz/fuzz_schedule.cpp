// Random configurations, edits, ends of passes, states and jumps against a schedule that walks step by step: the same
// source, pass and batch at every step, and every other way to look at an epoch shows the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "choices.hpp"
#include "mtf/error.hpp"
#include "mtf/schedule/epoch_report.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/schedule/state.hpp"
#include "mtf/state/codec.hpp"
#include "slow_schedule.hpp"

namespace {

using fuzz::Choices;
using fuzz::Counts;
using fuzz::kUnbounded;
using fuzz::require;

constexpr std::uint64_t kMostSteps = 150;
constexpr int kMostEpochs = 3;

double choose_weight(Choices& choose) { return choose.one_of({0.0, 0.1, 0.2, 0.5, 1.0, 1.0 / 3, 3.0, 1e-3}); }

mtf::MixtureConfig choose_config(Choices& choose, std::size_t num_sources) {
  mtf::MixtureConfig config;
  config.strategy = choose.one_of(
      {mtf::Strategy::weighted, mtf::Strategy::round_robin, mtf::Strategy::alternating, mtf::Strategy::sequential});
  config.order = static_cast<mtf::WeightedOrder>(choose.below(3));
  if (config.strategy == mtf::Strategy::weighted && !choose.one_in(8)) {
    for (std::size_t i = 0; i < num_sources; ++i) {
      config.weights.push_back(choose_weight(choose));
    }
    if (choose.one_in(5)) {
      mtf::WeightCurve curve{.interpolation = static_cast<mtf::Interpolation>(choose.below(2)),
                             .every = 1 + choose.below(9)};
      std::uint64_t step = choose.below(10);
      for (std::uint64_t left = 1 + choose.below(3); left > 0; --left, step += 1 + choose.below(40)) {
        curve.points.push_back({step, {}});
        for (std::size_t i = 0; i < num_sources; ++i) {
          curve.points.back().weights.push_back(choose_weight(choose));
        }
      }
      config.curve = std::move(curve);
    }
  }
  if (config.strategy == mtf::Strategy::alternating) {
    for (std::uint64_t left = 1 + choose.below(6); left > 0; --left) {
      config.pattern.push_back(static_cast<std::int32_t>(choose.below(num_sources)));
    }
  }
  config.burst = static_cast<std::int64_t>(1 + choose.below(choose.one_in(5) ? 20 : 4));
  config.policy = static_cast<mtf::EpochPolicy>(choose.below(4));
  if (config.policy == mtf::EpochPolicy::fixed_num_steps) {
    config.steps_per_epoch = 1 + choose.below(60);
  }
  config.cycle = choose.one_in(2);
  if (choose.one_in(3)) {
    config.continue_across_epochs = choose.one_in(2);
  }
  return config;
}

std::optional<std::uint64_t> choose_length(Choices& choose) {
  return choose.one_in(6) ? std::nullopt : std::optional(1 + choose.below(12));
}

/// What a source really has: its length, or less where the length is unknown or wrong.
std::uint64_t choose_true_length(Choices& choose, std::uint64_t length, bool may_be_wrong) {
  if (length == kUnbounded) {
    return 1 + choose.below(8);
  }
  return may_be_wrong && choose.one_in(4) ? 1 + choose.below(length) : length;
}

class Run {
 public:
  Run(Choices& choose, const mtf::MixtureSpec& spec, std::uint64_t seed)
      : choose_(choose),
        schedule_(spec, seed),
        wrong_lengths_(choose.one_in(3)),
        true_lengths_(choose_true_lengths(spec)),
        slow_(spec, seed, true_lengths_) {}

  void run() {
    for (int epoch = 0; epoch < kMostEpochs && run_epoch(); ++epoch) {
      schedule_.next_epoch();
      slow_.next_epoch();
      draws_.clear();
      bookmark_.reset();
    }
  }

 private:
  struct Bookmark {
    fuzz::SlowSchedule slow;
    Counts true_lengths;
    std::size_t num_draws;
  };

  Counts choose_true_lengths(const mtf::MixtureSpec& spec) {
    Counts out;
    for (const auto& source : spec.sources) {
      out.push_back(choose_true_length(choose_, source.pass_limit(), wrong_lengths_));
    }
    return out;
  }

  /// False when the epoch has more steps than anybody looks at.
  bool run_epoch() {
    while (draws_.size() < kMostSteps) {
      disturb();
      const std::optional<mtf::Draw> expected = slow_.next();
      require(next() == expected);
      if (!expected) {
        look_around(true);
        return true;
      }
      draws_.push_back(*expected);
    }
    look_around(false);
    return false;
  }

  /// One step as a loop over real loaders takes it.
  std::optional<mtf::Draw> next() {
    const mtf::MixtureSpec spec = schedule_.spec();
    bool all_as_told = true;
    for (std::size_t i = 0; i < true_lengths_.size(); ++i) {
      all_as_told = all_as_told && (!spec.sources[i].present || spec.sources[i].length == true_lengths_[i]);
    }
    if (all_as_told && choose_.one_in(2)) {
      return schedule_.next();
    }
    while (true) {
      std::int32_t source = 0;
      std::int64_t pass = 0;
      std::int64_t batch = 0;
      if (schedule_.draws({&source, 1}, {&pass, 1}, {&batch, 1}) == 0) {
        return std::nullopt;
      }
      const auto index = static_cast<std::size_t>(source);
      if (static_cast<std::uint64_t>(batch) < true_lengths_[index]) {
        const mtf::Draw draw{schedule_.step(), source, static_cast<std::uint64_t>(pass),
                             static_cast<std::uint64_t>(batch)};
        schedule_.advance(1);
        return draw;
      }
      schedule_.end_pass(source, static_cast<std::uint64_t>(batch));
      bookmark_.reset();  // going back to before an end that was told would not forget it
    }
  }

  /// What may happen between two steps.
  void disturb() {
    switch (choose_.below(24)) {
      case 1:
      case 2:
      case 3:
        edit();
        break;
      case 4:
        save_and_load();
        break;
      case 5:
        if (!bookmark_) {
          bookmark_ = {slow_, true_lengths_, draws_.size()};
        }
        break;
      case 6:
        if (bookmark_) {
          go_back();
        }
        break;
      case 7:
        schedule_.extend_pass(static_cast<std::int32_t>(choose_.below(true_lengths_.size())), 1 + choose_.below(9));
        bookmark_.reset();
        break;
      case 8:
        if (!draws_.empty()) {
          const std::uint64_t step = choose_.below(draws_.size());
          require(schedule_.at(step, schedule_.epoch()) == draws_[step]);
        }
        break;
      default:
        break;
    }
  }

  void edit() {
    const mtf::MixtureSpec before = schedule_.spec();
    bool changed = false;
    try {
      changed = choose_edit(before);
    } catch (const mtf::ConfigError&) {
      require(schedule_.spec() == before);
      return;
    }
    const mtf::MixtureSpec& after = schedule_.spec();
    require(changed == !(after == before));
    if (!changed) {
      return;
    }
    for (std::size_t i = 0; i < after.sources.size(); ++i) {
      const bool is_new = i >= before.sources.size() || (after.sources[i].present && !before.sources[i].present);
      if (!is_new) {
        continue;
      }
      true_lengths_.resize(std::max(true_lengths_.size(), i + 1));
      true_lengths_[i] = choose_true_length(choose_, after.sources[i].pass_limit(), wrong_lengths_);
    }
    slow_.edit(after, true_lengths_);
    if (bookmark_ && bookmark_->num_draws == draws_.size()) {
      bookmark_.reset();
    }
  }

  bool choose_edit(const mtf::MixtureSpec& spec) {
    const std::size_t source = choose_.below(spec.sources.size());
    switch (choose_.below(5)) {
      case 0: {
        std::vector<double> weights;
        for (std::size_t i = 0; i < spec.num_present(); ++i) {
          weights.push_back(choose_weight(choose_));
        }
        return schedule_.update_weights(weights);
      }
      case 1:
        return schedule_.set_weight(spec.sources[source].name, choose_weight(choose_));
      case 2: {
        const std::string name =
            spec.sources[source].present ? "s" + std::to_string(spec.sources.size()) : spec.sources[source].name;
        const std::optional<std::uint64_t> length = choose_length(choose_);
        return schedule_.add_source(name, length,
                                    choose_.one_in(2) ? std::optional(choose_weight(choose_)) : std::nullopt);
      }
      case 3:
        return schedule_.remove_source(spec.sources[source].name);
      default:
        return schedule_.set_config(choose_config(choose_, spec.sources.size()));
    }
  }

  void save_and_load() {
    const mtf::ScheduleState state = schedule_.state(schedule_.step());
    const std::string bytes = mtf::encode(mtf::kScheduleKind, version_of(state), to_value(state));
    const mtf::Decoded decoded =
        mtf::decode(mtf::kScheduleKind, mtf::kScheduleVersion, std::as_bytes(std::span(bytes)));
    const mtf::ScheduleState again = mtf::schedule_state_from(decoded.value, decoded.version);
    auto other = choose_.one_in(2) ? mtf::Schedule::from_state(again) : [&] {
      mtf::Schedule fresh(schedule_.initial(), schedule_.seed());
      fresh.load(again);
      return fresh;
    }();
    require(other.fingerprints() == schedule_.fingerprints());
    require(to_value(other.state(other.step())) == to_value(state));
    schedule_ = std::move(other);
  }

  /// Back to the bookmark; what was edited behind it is forgotten with the next edit only.
  void go_back() {
    const Bookmark mark = *bookmark_;
    schedule_.seek(schedule_.epoch(), mark.num_draws);
    for (std::size_t step = mark.num_draws; step < draws_.size(); ++step) {
      std::optional<mtf::Draw> again = schedule_.next();
      require(again == draws_[step]);
    }
    schedule_.seek(schedule_.epoch(), mark.num_draws);
    // An edit, so that the events behind it are dropped; it must change something.
    mtf::MixtureConfig config = schedule_.spec().config;
    config.burst = config.burst % 5 + 1;
    require(schedule_.set_config(config));
    slow_ = mark.slow;
    true_lengths_ = mark.true_lengths;
    slow_.edit(schedule_.spec(), true_lengths_);
    draws_.resize(mark.num_draws);
    bookmark_.reset();
  }

  /// Every other view of the epoch's steps.
  void look_around(bool is_over) {
    const mtf::EpochIndex epoch = schedule_.epoch();
    const std::uint64_t num_steps = draws_.size();
    require(schedule_.step() == num_steps);
    require(schedule_.epoch_done() == is_over || !is_over);
    if (is_over) {
      require(schedule_.num_steps(epoch) == num_steps);
    }

    Counts counted(schedule_.spec().sources.size());
    const std::size_t stride = 1 + choose_.below(7);
    for (std::uint64_t step = 0; step < num_steps; ++step) {
      if (step % stride == 0) {
        require(schedule_.counts(step, epoch) == counted);
        require(schedule_.at(step, epoch) == draws_[step]);
      }
      ++counted[static_cast<std::size_t>(draws_[step].source)];
    }
    require(schedule_.counts(num_steps, epoch) == counted && slow_.counts() == counted);

    std::vector<std::int32_t> sources(num_steps);
    for (std::uint64_t begin = 0; begin < num_steps;) {
      const std::uint64_t end = std::min(num_steps, begin + 1 + choose_.below(60));
      mtf::Schedule::fill(schedule_.ranges(epoch, begin, end), std::span(sources).subspan(begin, end - begin));
      begin = end;
    }
    std::vector<std::int32_t> again(num_steps);
    std::vector<std::int64_t> passes(num_steps);
    std::vector<std::int64_t> batches(num_steps);
    schedule_.seek(epoch, 0);
    require(schedule_.draws(again, passes, batches) == num_steps);
    schedule_.seek(epoch, num_steps);
    for (std::uint64_t step = 0; step < num_steps; ++step) {
      const mtf::Draw& draw = draws_[step];
      require(sources[step] == draw.source && again[step] == draw.source);
      require(static_cast<std::uint64_t>(passes[step]) == draw.pass);
      require(static_cast<std::uint64_t>(batches[step]) == draw.batch);
    }
    const mtf::EpochReport report = make_report(schedule_.ranges(epoch, 0, num_steps));
    require(report.num_steps == num_steps);
    for (std::size_t i = 0; i < report.sources.size(); ++i) {
      require(report.sources[i].num_steps == counted[i]);
    }
  }

  Choices& choose_;
  mtf::Schedule schedule_;
  bool wrong_lengths_;
  Counts true_lengths_;
  fuzz::SlowSchedule slow_;
  std::vector<mtf::Draw> draws_;
  std::optional<Bookmark> bookmark_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choose(std::span(data, size));
  mtf::MixtureSpec spec;
  const std::uint64_t n = 1 + choose.below(6);
  for (std::uint64_t i = 0; i < n; ++i) {
    spec.sources.push_back({.name = "s" + std::to_string(i), .length = choose_length(choose)});
  }
  spec.config = choose_config(choose, n);
  const std::uint64_t seed = choose.below(std::uint64_t{1} << 32);
  try {
    validate(spec);
  } catch (const mtf::ConfigError&) {
    return 0;
  }
  Run(choose, spec, seed).run();
  return 0;
}
