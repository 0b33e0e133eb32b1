/// What a Prefetcher and its threads share: the queues, the budget, and who fetches what next.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>

#include "mtf/prefetch/budget.hpp"
#include "mtf/prefetch/native_source.hpp"
#include "mtf/prefetch/prefetcher.hpp"
#include "mtf/prefetch/task_queue.hpp"
#include "mtf/prefetch/worker_pool.hpp"

namespace mtf {

/// The methods have the Prefetcher's contracts. `mutex_` guards every member but `workers_`, which `joining_` guards.
class PrefetchEngine : public std::enable_shared_from_this<PrefetchEngine> {
 public:
  explicit PrefetchEngine(PrefetchOptions options);

  std::size_t add_source(std::shared_ptr<NativeSource> source);
  void request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
               std::span<const std::int64_t> batches);
  [[nodiscard]] std::unique_ptr<Payload> take(std::size_t source, std::chrono::nanoseconds max_wait);
  [[nodiscard]] std::unique_ptr<Payload> take_ready(std::size_t source);
  std::size_t discard(std::size_t source);
  void reset();
  [[nodiscard]] PrefetchStats stats() const;
  bool close(std::chrono::nanoseconds max_wait);
  [[nodiscard]] bool is_closed() const;

 private:
  using Lock = std::unique_lock<std::mutex>;
  using Clock = std::chrono::steady_clock;

  void check_open() const;
  void check_source(std::size_t source) const;
  void check_draws(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
                   std::span<const std::int64_t> batches) const;
  /// The oldest task of a source.
  [[nodiscard]] Task* front(std::size_t source) const;

  [[nodiscard]] Task* next_task() const;
  [[nodiscard]] Task* task_for_caller(Task* awaited) const;
  void wake_worker();
  void begin(Task* task);
  void run(Lock& lock, Task* task);
  void file_result(Lock& lock, Task* task, std::unique_ptr<Payload> payload, std::exception_ptr error);
  [[nodiscard]] std::unique_ptr<Payload> wait_for(Lock& lock, std::size_t source, Clock::time_point deadline);
  void spin(Lock& lock, const Task* task);
  [[nodiscard]] bool sleep_until(Lock& lock, Task* task, Clock::time_point deadline);
  [[nodiscard]] std::unique_ptr<Payload> finish(Lock& lock, Task* task);
  std::size_t drop_all(SourceQueue& queue, DeferredDestruction& deferred);
  void work();

  const std::size_t num_threads_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;    // for workers
  std::condition_variable ready_;   // for the consumer
  std::deque<SourceQueue> queues_;  // a deque: a running fetch keeps a reference while a source is added
  TaskSlab slab_;
  RequestOrder order_;
  Budget budget_;
  Task* urgent_ = nullptr;  // queued, and the consumer sleeps until it is ready
  bool closed_ = false;
  std::size_t num_parked_ = 0;
  std::size_t num_waking_ = 0;  // of the parked, those already told to wake up
  std::uint64_t num_taken_ = 0;
  std::uint64_t taken_ready_ = 0;
  std::uint64_t num_in_caller_ = 0;
  std::uint64_t num_wakeups_ = 0;
  std::uint64_t sum_ready_ = 0;
  double wait_s_ = 0;
  std::mutex joining_;
  WorkerPool workers_;
};

}  // namespace mtf
