#include "mtf/sampling/sampler.hpp"

#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

Sampler::Sampler(SamplerSpec spec) : spec_(std::move(spec)) {
  if (spec_.batch_size == 0) {
    throw ConfigError("`batch_size` must be at least 1, but is 0.");
  }
  if (spec_.world_size == 0) {
    throw ConfigError("`world_size` must be at least 1, but is 0.");
  }
  if (spec_.rank >= spec_.world_size) {
    throw ConfigError(
        format_message("`rank` must be less than `world_size` ({}), but is {}.", spec_.world_size, spec_.rank));
  }
  if (spec_.num_samples > Permutation::kMaxSize) {
    throw ConfigError(format_message("`num_samples` must be at most 2^62, but is {}.", spec_.num_samples));
  }
  if (spec_.indices && spec_.indices->size() != spec_.num_samples) {
    throw ConfigError(format_message("`num_samples` must be the number of `indices` ({}), but is {}.",
                                     spec_.indices->size(), spec_.num_samples));
  }
  num_batches_ = spec_.num_samples / spec_.batch_size;
  if (!spec_.drop_last && spec_.num_samples % spec_.batch_size != 0) {
    ++num_batches_;
  }
}

std::uint64_t Sampler::global_batch_size(std::uint64_t batch) const noexcept {
  return std::min(spec_.batch_size, spec_.num_samples - batch * spec_.batch_size);
}

ShardRange Sampler::part(std::uint64_t batch) const noexcept {
  return shard(global_batch_size(batch), spec_.rank, spec_.world_size);
}

void Sampler::fill(std::uint64_t pass, std::uint64_t batch, std::span<std::int64_t> out) const {
  if (batch >= num_batches_) {
    throw std::out_of_range(format_message("a pass has {} batches, but batch {} is asked for.", num_batches_, batch));
  }
  const ShardRange range = part(batch);
  if (out.size() != range.size()) {
    throw std::out_of_range(format_message("batch {} has {} samples on this rank, but there is room for {}.", batch,
                                           range.size(), out.size()));
  }
  fill_order(pass, batch * spec_.batch_size + range.begin, out);
}

void Sampler::fill_order(std::uint64_t pass, std::uint64_t begin, std::span<std::int64_t> out) const {
  if (begin > spec_.num_samples || out.size() > spec_.num_samples - begin) {
    throw std::out_of_range(format_message("the places [{}, {} + {}) do not lie within [0, {}).", begin, begin,
                                           out.size(), spec_.num_samples));
  }
  if (spec_.shuffle) {
    order_of(pass)->fill(begin, out);
  } else {
    std::iota(out.begin(), out.end(), static_cast<std::int64_t>(begin));
  }
  if (spec_.indices) {
    for (std::int64_t& place : out) {
      place = (*spec_.indices)[static_cast<std::size_t>(place)];
    }
  }
}

std::shared_ptr<const Permutation> Sampler::order_of(std::uint64_t pass) const {
  {
    const std::lock_guard lock(mutex_);
    if (cached_order_ && cached_pass_ == pass) {
      return cached_order_;
    }
  }
  auto order = std::make_shared<const Permutation>(spec_.num_samples, fold_in(spec_.key, pass));
  const std::lock_guard lock(mutex_);
  cached_pass_ = pass;
  cached_order_ = order;
  return order;
}

}  // namespace mtf
