/// The sample indices of batch b of pass p, as a function of (spec, p, b).
///
/// A pass takes every sample once, in order or in the order of a Permutation keyed by the pass, and cuts it into global
/// batches. Each rank has its part of every global batch (see shard.hpp), so the global order doesn't depend on how
/// many ranks there are.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/random/permutation.hpp"
#include "mtf/sampling/shard.hpp"

namespace mtf {

/// A pass that began under another number of samples or another batch size, and is finished under those of now: the
/// first `num_samples` samples in the order that a pass of so many has, of which those before `first_sample` were
/// given. Its next batch has the number `first_batch`.
struct RestOfPass {
  std::uint64_t pass = 0;
  std::uint64_t num_samples = 0;
  std::uint64_t first_sample = 0;
  std::uint64_t first_batch = 0;
};

/// What a sampler gives. `indices`, where present, are the samples themselves (any order, repeats allowed) and
/// `num_samples` must be their number; without them the samples are [0, num_samples).
struct SamplerSpec {
  std::uint64_t num_samples = 0;
  /// Samples of a global batch, all ranks together.
  std::uint64_t batch_size = 1;
  bool shuffle = false;
  /// Leaves out a last batch of fewer than `batch_size` samples.
  bool drop_last = false;
  std::uint32_t rank = 0;
  std::uint32_t world_size = 1;
  /// The source's key: the order of pass p is keyed by fold_in(key, p).
  Key key{};
  std::shared_ptr<const std::vector<std::int64_t>> indices{};
  std::optional<RestOfPass> rest{};
};

/// Thread safety: const methods may be called from any number of threads.
class Sampler {
 public:
  /// Throws: ConfigError if batch_size or world_size is 0, rank >= world_size, num_samples > 2^62 or not the number of
  /// `indices`.
  explicit Sampler(SamplerSpec spec);

  [[nodiscard]] const SamplerSpec& spec() const noexcept { return spec_; }
  /// Global batches of one pass, the same for every rank.
  [[nodiscard]] std::uint64_t num_batches() const noexcept { return num_batches_; }
  /// Samples in global batch b of any whole pass, all ranks together. Requires b < num_batches().
  [[nodiscard]] std::uint64_t global_batch_size(std::uint64_t batch) const noexcept;
  /// This rank's places in global batch b of a whole pass, counted from the batch's first; may be empty where the batch
  /// has fewer samples than there are ranks.
  [[nodiscard]] ShardRange part(std::uint64_t batch) const noexcept;

  /// Global batches of pass p: num_batches(), unless the pass is the spec's `rest`, whose numbers begin at
  /// `first_batch`.
  [[nodiscard]] std::uint64_t num_batches_in(std::uint64_t pass) const noexcept;
  /// Places of global batch b of pass p in the order of the pass, all ranks together.
  /// Throws: std::out_of_range if there is no such batch.
  [[nodiscard]] ShardRange places(std::uint64_t pass, std::uint64_t batch) const;

  /// Writes this rank's sample indices of batch b of pass p; out.size() must be the number of its places.
  /// Throws: std::out_of_range if there is no such batch or `out` has another size.
  /// Complexity: O(out.size()); the first batch of a pass as well.
  void fill(std::uint64_t pass, std::uint64_t batch, std::span<std::int64_t> out) const;

  /// Writes places [begin, begin + out.size()) of the global order of pass p, whatever rank this is.
  /// Throws: std::out_of_range if they don't lie within the pass's samples.
  void fill_order(std::uint64_t pass, std::uint64_t begin, std::span<std::int64_t> out) const;

 private:
  [[nodiscard]] std::uint64_t count_batches(std::uint64_t num_samples) const noexcept;
  [[nodiscard]] bool is_rest(std::uint64_t pass) const noexcept { return spec_.rest && spec_.rest->pass == pass; }
  [[nodiscard]] std::uint64_t num_samples(std::uint64_t pass) const noexcept {
    return is_rest(pass) ? spec_.rest->num_samples : spec_.num_samples;
  }
  [[nodiscard]] std::shared_ptr<const Permutation> order_of(std::uint64_t pass) const;

  SamplerSpec spec_;
  std::uint64_t num_batches_;
  // The order used last: threads that fetch neighbouring batches share it. Small orders are tables worth keeping.
  mutable std::mutex mutex_;
  mutable std::uint64_t cached_pass_ = 0;
  mutable std::shared_ptr<const Permutation> cached_order_;
};

}  // namespace mtf
