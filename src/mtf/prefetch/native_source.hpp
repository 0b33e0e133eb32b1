/// What the prefetcher fetches from: batches addressed by (pass, batch).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mtf {

/// One fetched batch, in whatever form its source gives it.
class Payload {
 public:
  virtual ~Payload() = default;

  /// What it counts against the prefetcher's budget.
  [[nodiscard]] virtual std::size_t num_bytes() const noexcept = 0;
};

/// Gives the same batch for the same address, whenever, however often and on whichever thread it is asked.
class NativeSource {
 public:
  virtual ~NativeSource() = default;

  /// Batch `batch` of pass `pass`. Whatever it throws is kept for the step that takes the batch.
  /// Thread safety: called by several threads at once if `is_concurrent()`, else by one at a time in the order asked
  /// for.
  [[nodiscard]] virtual std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) = 0;

  /// An upper bound of a batch's bytes; 0 if only the batches themselves tell.
  [[nodiscard]] virtual std::size_t max_batch_bytes() const noexcept { return 0; }

  [[nodiscard]] virtual bool is_concurrent() const noexcept { return true; }

  /// True if a fetch may wait for files, networks or Python. Such a batch is left to the worker threads, so that the
  /// consumer's wait can be interrupted and timed; others the consumer fetches itself rather than wait for a free
  /// worker.
  [[nodiscard]] virtual bool may_block() const noexcept { return false; }
};

}  // namespace mtf
