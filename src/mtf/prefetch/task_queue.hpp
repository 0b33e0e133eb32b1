/// Requested batches and the two orders that they stand in: by request over all sources, and by source.
///
/// Nothing here locks: the engine's mutex guards every member but `Task::state`, which may be read without it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <vector>

#include "mtf/prefetch/native_source.hpp"
#include "mtf/prefetch/prefetcher.hpp"

namespace mtf {

// A fetch that takes less than this isn't worth a wake-up of its own, and is waited for by spinning.
inline constexpr double kWakeUpCost_s = 50e-6;

enum class TaskState : std::uint8_t { queued, running, ready };

/// One requested batch. Lives in a TaskSlab for ever and is used again, so that reading `state` without the lock is
/// always allowed.
struct Task {
  std::atomic<TaskState> state{TaskState::queued};
  bool dropped = false;       // forgotten while it ran: the thread that runs it clears it away
  bool awaited = false;       // the consumer sleeps until it is ready
  bool is_size_known = true;  // when its fetch began
  std::uint32_t source = 0;
  std::uint64_t pass = 0;
  std::uint64_t batch = 0;
  std::size_t bytes = 0;  // what it counts against the budget
  std::unique_ptr<Payload> payload;
  std::exception_ptr error;
  Task* previous = nullptr;  // neighbours in the order of requests, while queued
  Task* next = nullptr;
};

/// Owns all tasks. A task that is given back is given out again; none is ever freed.
class TaskSlab {
 public:
  /// A task in its first state. Complexity: O(1), without allocation in the steady state.
  [[nodiscard]] Task* acquire();
  /// Never allocates.
  void recycle(Task* task) noexcept;

 private:
  std::deque<Task> tasks_;
  std::vector<Task*> unused_;
};

/// The queued tasks of all sources in the order of their requests: a list that runs through the tasks.
class RequestOrder {
 public:
  [[nodiscard]] Task* first() const noexcept { return first_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  void append(Task* task) noexcept;
  void remove(Task* task) noexcept;

 private:
  Task* first_ = nullptr;
  Task* last_ = nullptr;
  std::size_t size_ = 0;
};

/// One source, its tasks that weren't taken yet, and what its batches have cost so far.
struct SourceQueue {
  explicit SourceQueue(std::shared_ptr<NativeSource> given);

  /// Bytes that a batch not yet fetched is expected to need, once anything is known about it.
  [[nodiscard]] std::size_t expected_bytes() const noexcept;
  /// False before the first batch of a source that doesn't announce its batches' size.
  [[nodiscard]] bool is_size_known() const noexcept { return max_batch_bytes != 0 || stats.num_fetched != 0; }
  /// Seconds that a fetch is expected to take; sources that may block count as slow until they were seen to be fast.
  [[nodiscard]] double expected_fetch_s() const noexcept;
  [[nodiscard]] bool is_cheap() const noexcept { return expected_fetch_s() < kWakeUpCost_s; }
  /// A source that isn't thread-safe is served by one thread at a time.
  // guard: one thread per serial source
  [[nodiscard]] bool may_begin() const noexcept { return num_running == 0 || source->is_concurrent(); }

  std::shared_ptr<NativeSource> source;
  std::deque<Task*> fifo;
  std::size_t max_batch_bytes = 0;
  std::size_t largest_seen = 0;
  std::size_t num_running = 0;
  PrefetchStats::Source stats;
};

/// What was taken out under the lock and is destroyed after it: a payload's destructor may need the interpreter.
struct DeferredDestruction {
  std::vector<std::unique_ptr<Payload>> payloads;
  std::vector<std::exception_ptr> errors;
};

}  // namespace mtf
