/// How many batches and bytes may be held at once: those that are being fetched, and those that wait to be taken.
///
/// A batch counts what it is expected to need while it is fetched, and what it has from then on. Nothing here locks:
/// the engine's mutex guards it.
#pragma once

#include <cstddef>

#include "mtf/prefetch/prefetcher.hpp"
#include "mtf/prefetch/task_queue.hpp"

namespace mtf {

class Budget {
 public:
  /// Throws ConfigError for a budget of no batches. `max_bytes` 0: no limit in bytes.
  Budget(std::size_t max_batches, std::size_t max_bytes);

  /// Whether one more batch of the source may be fetched ahead of its use.
  [[nodiscard]] bool fits(const SourceQueue& queue) const;
  /// A batch greater than the whole budget is never fetched ahead, only when the consumer waits for it.
  [[nodiscard]] bool is_exceeded_by(const SourceQueue& queue) const;
  /// Whether so much is free that it is worth to wake a worker for cheap fetches.
  [[nodiscard]] bool is_half_free() const noexcept;

  /// A fetch begins: reserves what its batch is expected to need.
  void begin(Task& task, SourceQueue& queue);
  /// The fetch is over and gave `bytes`: gives the reservation back, and learns how large batches of the source are.
  void end(const Task& task, SourceQueue& queue, std::size_t bytes);
  /// A fetched batch waits to be taken.
  void add_ready(Task& task, std::size_t bytes);
  /// It was taken, or dropped.
  void remove_ready(const Task& task) noexcept;

  [[nodiscard]] std::size_t num_running() const noexcept { return num_running_; }
  [[nodiscard]] std::size_t num_ready() const noexcept { return num_ready_; }
  [[nodiscard]] std::size_t bytes_held() const noexcept { return bytes_held_; }
  [[nodiscard]] std::size_t peak_bytes() const noexcept { return peak_bytes_; }
  [[nodiscard]] std::size_t peak_batches() const noexcept { return peak_batches_; }

 private:
  [[nodiscard]] std::size_t expected_bytes(const SourceQueue& queue) const noexcept;
  void hold(std::size_t bytes);

  std::size_t max_batches_;
  std::size_t max_bytes_;
  std::size_t num_running_ = 0;
  std::size_t num_unknown_running_ = 0;  // of these, the ones whose size can't be foreseen
  std::size_t num_ready_ = 0;
  std::size_t largest_seen_ = 0;  // bytes of the largest batch of any source
  std::size_t bytes_held_ = 0;
  std::size_t peak_bytes_ = 0;
  std::size_t peak_batches_ = 0;
};

}  // namespace mtf
