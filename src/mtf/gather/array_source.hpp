/// Batches of rows of one or several arrays: sampler, gather and collation in one, without a lock and without Python.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "mtf/gather/array_view.hpp"
#include "mtf/gather/buffer_pool.hpp"
#include "mtf/prefetch/native_source.hpp"
#include "mtf/sampling/sampler.hpp"

namespace mtf {

/// The same rows of each array, dense, in pooled memory.
class ArrayBatch : public Payload {
 public:
  ArrayBatch(std::vector<Buffer> given, std::uint64_t rows, std::uint64_t of_pass, std::uint64_t of_batch)
      : buffers(std::move(given)), num_rows(rows), pass(of_pass), batch(of_batch) {}

  [[nodiscard]] std::size_t num_bytes() const noexcept override {
    std::size_t sum = 0;
    for (const Buffer& buffer : buffers) {
      sum += buffer.num_bytes();
    }
    return sum;
  }

  std::vector<Buffer> buffers;  ///< one per array, `num_rows * row_bytes` each
  std::uint64_t num_rows;
  std::uint64_t pass;
  std::uint64_t batch;
};

/// Thread safety: all methods. The memory behind the views belongs to the caller and outlives the source.
class ArraySource : public NativeSource {
 public:
  /// Throws: ConfigError if there is no array, their numbers of rows differ, or one isn't the sampler's.
  ArraySource(std::vector<ArrayView> arrays, SamplerSpec spec, std::shared_ptr<BufferPool> pool);

  /// Batch `batch` of pass `pass`, an ArrayBatch. A rank whose part of a short batch is empty gets the batch's first
  /// row, so that it has something to compute; its share in the loss is zero (`share_is_empty`). Throws:
  /// std::out_of_range for a batch that a pass doesn't have; std::bad_alloc.
  [[nodiscard]] std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) override;

  [[nodiscard]] std::size_t max_batch_bytes() const noexcept override;

  [[nodiscard]] std::uint64_t num_batches() const noexcept { return sampler_.num_batches(); }

  /// True where this rank has no row of its own.
  [[nodiscard]] bool share_is_empty(std::uint64_t batch) const noexcept { return sampler_.part(batch).size() == 0; }

 private:
  const std::vector<ArrayView> arrays_;
  const Sampler sampler_;
  const std::shared_ptr<BufferPool> pool_;
};

}  // namespace mtf
