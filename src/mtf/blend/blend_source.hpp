/// Batches whose samples come from several sources in the shares of a schedule.
///
/// The samples of a run are numbered 0, 1, 2 ...; batch k has the samples [start(k), start(k + 1)) of BatchSizes. The
/// schedule, with one sample per step, says which source gives a sample and which of its draws that is; draw d of a
/// source of n rows is place d mod n of its pass d / n. So every sample of every batch is a function of its number, a
/// rank's part of a batch is a range of numbers, and the global batch doesn't depend on how many ranks there are.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "mtf/blend/batch_sizes.hpp"
#include "mtf/blend/sample_finder.hpp"
#include "mtf/gather/buffer_pool.hpp"
#include "mtf/gather/gather.hpp"
#include "mtf/gather/row_source.hpp"
#include "mtf/prefetch/native_source.hpp"
#include "mtf/sampling/shard.hpp"
#include "mtf/schedule/schedule.hpp"

namespace mtf {

/// Rows that lie together: all of a batch, or those of one source.
struct StackedRows {
  std::int32_t source = 0;  ///< whose fields the buffers have; all rows come from it if the batch is split by source
  std::uint64_t num_rows = 0;
  std::vector<Buffer> buffers;  ///< one per field
  Buffer cu_seqlens;            ///< int32, where a field counts positions
  std::uint64_t num_cu_seqlens = 0;
};

class BlendBatch : public Payload {
 public:
  [[nodiscard]] std::size_t num_bytes() const noexcept override;

  std::vector<StackedRows> stacks;  ///< one, or one for each source that gave a row, in their order
  std::uint64_t pass = 0;
  std::uint64_t batch = 0;
  std::uint64_t version = 0;  ///< of the plan that it was made by
};

/// Thread safety: all methods.
class BlendSource : public NativeSource {
 public:
  struct Spec {
    /// A pass of the blend, for callers that count in passes: batch b of pass p is batch p * batches_per_pass + b.
    std::uint64_t batches_per_pass = 1;
    std::uint32_t rank = 0;
    std::uint32_t world_size = 1;
    /// Rows of each source in a stack of their own; else all sources have equal fields.
    bool by_source = false;
  };

  /// `schedule` has one step per sample and one source per part, of as many batches as the part has rows.
  /// Throws: ConfigError for no part, an empty pass, a rank that isn't below world_size, a batch smaller than the
  /// ranks, or unequal fields that are to be stacked.
  BlendSource(Schedule schedule, BatchSizes sizes, std::vector<BlendPart> parts, Spec spec,
              std::shared_ptr<BufferPool> pool);

  [[nodiscard]] const BatchSizes& sizes() const noexcept { return sizes_; }

  /// This rank's rows of a batch, a BlendBatch. Throws: std::out_of_range beyond 2^61 samples; std::bad_alloc; what
  /// writing a row throws.
  [[nodiscard]] std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) override;

  /// The samples at any `positions`, in their order. Throws: as `fetch`.
  [[nodiscard]] std::unique_ptr<BlendBatch> fetch_samples(std::span<const std::uint64_t> positions);

  /// Samples [begin, begin + size) of the run. Throws: std::out_of_range beyond 2^61 samples.
  [[nodiscard]] SampleDraws draws(std::uint64_t begin, std::size_t size);

  /// Draws from `schedule` and `parts` from now on: after an edit. Batches fetched before have an older version, and a
  /// consumer fetches those again. Throws, with nothing changed: as the constructor.
  void follow(Schedule schedule, std::vector<BlendPart> parts);

  [[nodiscard]] std::uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }

  [[nodiscard]] std::size_t max_batch_bytes() const noexcept override;

  /// The numbers of the samples that this rank has in a batch.
  [[nodiscard]] ShardRange samples_of(std::uint64_t batch) const;

 private:
  /// A schedule with the sources that it draws from. Threads share it.
  struct Plan {
    Plan(Schedule schedule, std::vector<BlendPart> of, std::uint64_t number, bool by_source);

    const std::vector<BlendPart> parts;
    const std::uint64_t version;
    /// Per field where each source's rows lie, if all are rows of arrays that are copied as they lie; else empty.
    const std::vector<std::vector<RowBase>> bases;
    SampleFinder finder;
  };

  [[nodiscard]] std::shared_ptr<Plan> make_plan(Schedule schedule, std::vector<BlendPart> parts,
                                                std::uint64_t version) const;
  [[nodiscard]] std::shared_ptr<Plan> plan() const;
  [[nodiscard]] SampleSpan find(Plan& plan, std::uint64_t batch) const;
  void gather(const Plan& plan, const SampleSpan& samples, BlendBatch& batch) const;
  void gather_by_source(const Plan& plan, const SampleSpan& samples, BlendBatch& batch) const;
  [[nodiscard]] StackedRows make_stack(const Plan& plan, std::int32_t source, std::uint64_t num_rows) const;

  const BatchSizes sizes_;
  const Spec spec_;
  const std::shared_ptr<BufferPool> pool_;
  mutable std::mutex mutex_;
  std::shared_ptr<Plan> plan_;
  std::atomic<std::uint64_t> version_{0};
};

}  // namespace mtf
