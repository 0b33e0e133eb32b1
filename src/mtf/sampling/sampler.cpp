#include "mtf/sampling/sampler.hpp"

#include <algorithm>
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
  if (spec_.rest && (spec_.indices || spec_.rest->num_samples > spec_.num_samples ||
                     spec_.rest->first_sample > spec_.rest->num_samples)) {
    throw ConfigError("`rest` must lie within the samples, which must be numbered.");
  }
  num_batches_ = count_batches(spec_.num_samples);
}

std::uint64_t Sampler::count_batches(std::uint64_t num_samples) const noexcept {
  const bool has_short_batch = !spec_.drop_last && num_samples % spec_.batch_size != 0;
  return num_samples / spec_.batch_size + (has_short_batch ? 1 : 0);
}

std::uint64_t Sampler::num_batches_in(std::uint64_t pass) const noexcept {
  if (!is_rest(pass)) {
    return num_batches_;
  }
  return spec_.rest->first_batch + count_batches(spec_.rest->num_samples - spec_.rest->first_sample);
}

ShardRange Sampler::places(std::uint64_t pass, std::uint64_t batch) const {
  const RestOfPass rest = is_rest(pass) ? *spec_.rest : RestOfPass{pass, spec_.num_samples, 0, 0};
  if (batch < rest.first_batch || batch >= num_batches_in(pass)) {
    throw std::out_of_range(format_message("batch: must be in [{}, {}) in pass {}, but is {}", rest.first_batch,
                                           num_batches_in(pass), pass, batch));
  }
  const std::uint64_t begin = rest.first_sample + (batch - rest.first_batch) * spec_.batch_size;
  return {begin, std::min(begin + spec_.batch_size, rest.num_samples)};
}

std::uint64_t Sampler::global_batch_size(std::uint64_t batch) const noexcept {
  return std::min(spec_.batch_size, spec_.num_samples - batch * spec_.batch_size);
}

ShardRange Sampler::part(std::uint64_t batch) const noexcept {
  return shard(global_batch_size(batch), spec_.rank, spec_.world_size);
}

void Sampler::fill(std::uint64_t pass, std::uint64_t batch, std::span<std::int64_t> out) const {
  if (batch >= num_batches_in(pass)) {
    throw std::out_of_range(
        format_message("a pass has {} batches, but batch {} is asked for.", num_batches_in(pass), batch));
  }
  const ShardRange whole = places(pass, batch);
  const ShardRange range = shard(whole.size(), spec_.rank, spec_.world_size);
  if (out.size() != range.size()) {
    throw std::out_of_range(format_message("batch {} has {} samples on this rank, but there is room for {}.", batch,
                                           range.size(), out.size()));
  }
  fill_order(pass, whole.begin + range.begin, out);
}

void Sampler::fill_order(std::uint64_t pass, std::uint64_t begin, std::span<std::int64_t> out) const {
  if (begin > num_samples(pass) || out.size() > num_samples(pass) - begin) {
    throw std::out_of_range(format_message("the places [{}, {} + {}) do not lie within [0, {}).", begin, begin,
                                           out.size(), num_samples(pass)));
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
  auto order = std::make_shared<const Permutation>(num_samples(pass), fold_in(spec_.key, pass));
  const std::lock_guard lock(mutex_);
  cached_pass_ = pass;
  cached_order_ = order;
  return order;
}

}  // namespace mtf
