#include "mtf/blend/batch_sizes.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"

namespace mtf {

namespace {

constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 31;

/// a + b * c, or nothing below kMaxSamples that could be mistaken for a sum: kMaxSamples itself.
std::uint64_t add_samples(std::uint64_t a, std::uint64_t num_batches, std::uint64_t size) noexcept {
  const auto sum = a + static_cast<unsigned __int128>(num_batches) * size;
  return sum >= BatchSizes::kMaxSamples ? BatchSizes::kMaxSamples : static_cast<std::uint64_t>(sum);
}

}  // namespace

BatchSizes::BatchSizes(std::vector<Stage> stages) : stages_(std::move(stages)) {
  if (stages_.empty()) {
    throw ConfigError("global_batch_size: must have at least one stage, but has none");
  }
  if (stages_[0].first_batch != 0) {
    throw ConfigError("global_batch_size: the first stage must begin at batch 0, but begins at " +
                      std::to_string(stages_[0].first_batch));
  }
  std::uint64_t start = 0;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const std::string where = "global_batch_size[" + std::to_string(i) + "]";
    const Stage& stage = stages_[i];
    if (stage.size == 0 || stage.size > kMaxSize) {
      throw ConfigError(where + ": a batch must have 1 to 2^31 samples, but has " + std::to_string(stage.size));
    }
    if (i > 0) {
      const Stage& before = stages_[i - 1];
      if (stage.first_batch <= before.first_batch) {
        throw ConfigError(where + ": must begin after batch " + std::to_string(before.first_batch) +
                          ", where the stage before it begins, but begins at batch " +
                          std::to_string(stage.first_batch));
      }
      start = add_samples(start, stage.first_batch - before.first_batch, before.size);
      if (start == kMaxSamples) {
        throw ConfigError(where + ": must begin below 2^61 samples");
      }
    }
    starts_.push_back(start);
  }
}

std::size_t BatchSizes::stage_of(std::uint64_t batch) const noexcept {
  const auto after = std::ranges::upper_bound(stages_, batch, {}, &Stage::first_batch);
  return static_cast<std::size_t>(after - stages_.begin()) - 1;
}

std::uint64_t BatchSizes::size(std::uint64_t batch) const noexcept { return stages_[stage_of(batch)].size; }

std::uint64_t BatchSizes::start(std::uint64_t batch) const {
  const std::size_t stage = stage_of(batch);
  const std::uint64_t start = add_samples(starts_[stage], batch - stages_[stage].first_batch, stages_[stage].size);
  if (start == kMaxSamples) {
    throw std::out_of_range("batch " + std::to_string(batch) + " begins beyond 2^61 samples");
  }
  return start;
}

std::uint64_t BatchSizes::batch_of(std::uint64_t position) const noexcept {
  const auto after = std::ranges::upper_bound(starts_, position);
  const auto stage = static_cast<std::size_t>(after - starts_.begin()) - 1;
  return stages_[stage].first_batch + (position - starts_[stage]) / stages_[stage].size;
}

std::uint64_t BatchSizes::smallest() const noexcept { return std::ranges::min(stages_, {}, &Stage::size).size; }

std::uint64_t BatchSizes::largest() const noexcept { return std::ranges::max(stages_, {}, &Stage::size).size; }

}  // namespace mtf
