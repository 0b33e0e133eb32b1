/// Batches of the rows of one source, pass after pass: what a loader of rows is alone or in a mixture of batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "mtf/gather/buffer_pool.hpp"
#include "mtf/gather/row_source.hpp"
#include "mtf/prefetch/native_source.hpp"
#include "mtf/random/key.hpp"
#include "mtf/sampling/sampler.hpp"
#include "mtf/sampling/shard.hpp"

namespace mtf {

/// Rows one after the other, and where documents begin in them if one of their fields counts positions.
class RowBatch : public Payload {
 public:
  [[nodiscard]] std::size_t num_bytes() const noexcept override;

  std::uint64_t pass = 0;
  std::uint64_t batch = 0;
  std::uint64_t num_rows = 0;
  std::vector<Buffer> buffers;  ///< one per field
  Buffer cu_seqlens;            ///< int32
  std::uint64_t num_cu_seqlens = 0;
};

struct RowBatchSpec {
  std::uint64_t batch_size = 1;  ///< rows of a global batch, all ranks together
  bool drop_last = false;
  std::uint32_t rank = 0;
  std::uint32_t world_size = 1;
  Key key{};  ///< the source's
  /// Of as many samples as there are rows: a pass that began with another batch size.
  std::optional<RestOfPass> rest{};
};

/// Batch b of pass p has the rows at the places [b B, b B + B) of the pass, divided among the ranks. A rank whose part
/// of a short batch is empty gets the batch's first row, so that it has something to compute; its share in the loss is
/// zero. Thread safety: all methods.
class RowBatches : public NativeSource {
 public:
  /// Throws: ConfigError if batch_size or world_size is 0, or the rank isn't below world_size.
  RowBatches(std::shared_ptr<const RowSource> rows, RowBatchSpec spec, std::shared_ptr<BufferPool> pool);

  [[nodiscard]] const RowSource& rows() const noexcept { return *rows_; }
  [[nodiscard]] std::uint64_t num_batches() const noexcept { return num_batches_; }

  /// A RowBatch. Throws: std::out_of_range for a batch that a pass doesn't have; std::bad_alloc; what writing a row
  /// throws.
  [[nodiscard]] std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) override;
  [[nodiscard]] std::size_t max_batch_bytes() const noexcept override;

 private:
  /// The places of this rank's rows in a batch; never empty.
  [[nodiscard]] ShardRange places(std::uint64_t pass, std::uint64_t batch) const noexcept;
  [[nodiscard]] bool is_rest(std::uint64_t pass) const noexcept { return spec_.rest && spec_.rest->pass == pass; }
  /// The numbers of the batches that a pass has.
  [[nodiscard]] ShardRange batches(std::uint64_t pass) const;
  void add_cu_seqlens(RowBatch& batch) const;

  const std::shared_ptr<const RowSource> rows_;
  const RowBatchSpec spec_;
  const std::shared_ptr<BufferPool> pool_;
  const std::uint64_t num_batches_;
};

}  // namespace mtf
