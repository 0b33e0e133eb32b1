/// A fixed number of threads that run one function until they are told to stop.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mtf {

/// Signals are blocked in the threads, so that handlers run in the threads that expect them.
/// Thread safety: one owner starts and joins; the body runs on all threads at once.
class WorkerPool {
 public:
  WorkerPool() = default;
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// Lets the threads go that haven't ended; `body` must own all that it touches.
  ~WorkerPool();

  /// Starts `num_threads` threads, each runs `body` once. Throws: std::system_error if the system gives no more threads
  /// (those started go on).
  void start(std::size_t num_threads, const std::function<void()>& body);

  /// Threads that were started and not joined.
  [[nodiscard]] std::size_t size() const noexcept { return threads_.size(); }

  /// Waits until every body has returned, at most for `max_wait`, and joins. True if all have ended.
  [[nodiscard]] bool join_for(std::chrono::nanoseconds max_wait);

  /// True on a thread of this pool. May be asked for on any thread at any time.
  [[nodiscard]] bool is_own_thread() const noexcept;

 private:
  /// Outlives the pool when a thread does.
  struct Roll {
    std::mutex mutex;
    std::condition_variable one_ended;
    std::size_t num_running = 0;
  };

  std::shared_ptr<Roll> roll_ = std::make_shared<Roll>();
  std::vector<std::thread> threads_;
};

}  // namespace mtf
