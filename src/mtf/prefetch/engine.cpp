#include "mtf/prefetch/engine.hpp"

#include <exception>
#include <string>
#include <utility>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

PrefetchEngine::PrefetchEngine(PrefetchOptions options)
    : num_threads_(options.num_threads), budget_(options.max_batches, options.max_bytes) {}

std::size_t PrefetchEngine::add_source(std::shared_ptr<NativeSource> source) {
  if (source == nullptr) {
    throw ConfigError("sources: must all be given, but one is missing");
  }
  const std::lock_guard lock(mutex_);
  check_open();
  queues_.emplace_back(std::move(source));
  return queues_.size() - 1;
}

void PrefetchEngine::request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
                             std::span<const std::int64_t> batches) {
  if (sources.size() != passes.size() || sources.size() != batches.size()) {
    throw ConfigError(format_message("request: sources, passes and batches must be equally long, but are {}, {} and {}",
                                     sources.size(), passes.size(), batches.size()));
  }
  const std::lock_guard lock(mutex_);
  check_open();
  check_draws(sources, passes, batches);
  if (!sources.empty() && workers_.size() < num_threads_) {
    workers_.start(num_threads_ - workers_.size(), [self = shared_from_this()] { self->work(); });
  }
  for (std::size_t k = 0; k < sources.size(); ++k) {
    Task* task = slab_.acquire();
    task->source = static_cast<std::uint32_t>(sources[k]);
    task->pass = static_cast<std::uint64_t>(passes[k]);
    task->batch = static_cast<std::uint64_t>(batches[k]);
    // guard: order of requests
    queues_[task->source].fifo.push_back(task);
    order_.append(task);
  }
  wake_worker();
}

std::unique_ptr<Payload> PrefetchEngine::take_ready(std::size_t source) {
  Lock lock(mutex_);
  Task* task = front(source);
  if (task->state.load(std::memory_order_relaxed) != TaskState::ready) {
    return nullptr;
  }
  ++taken_ready_;
  return finish(lock, task);
}

std::unique_ptr<Payload> PrefetchEngine::take(std::size_t source, std::chrono::nanoseconds max_wait) {
  Lock lock(mutex_);
  Task* task = front(source);
  if (task->state.load(std::memory_order_relaxed) == TaskState::ready) {
    ++taken_ready_;
    return finish(lock, task);
  }
  const Clock::time_point begin = Clock::now();
  struct CountWait {
    PrefetchEngine& engine;
    Lock& held;
    Clock::time_point since;
    ~CountWait() {
      if (!held.owns_lock()) {
        held.lock();
      }
      engine.wait_s_ += seconds(Clock::now() - since);
      held.unlock();
    }
  } const count_wait{*this, lock, begin};
  return wait_for(lock, source, begin + max_wait);
}

/// Waits for the oldest batch of `source`, and fetches where that is better than to wait. Nothing after the deadline.
std::unique_ptr<Payload> PrefetchEngine::wait_for(Lock& lock, std::size_t source, Clock::time_point deadline) {
  bool has_spun = false;
  while (true) {
    Task* const task = front(source);  // anything may have happened meanwhile: closed, discarded
    const TaskState state = task->state.load(std::memory_order_relaxed);
    if (state == TaskState::ready) {
      return finish(lock, task);
    }
    if (Task* const useful = task_for_caller(task); useful != nullptr) {
      ++num_in_caller_;
      begin(useful);
      run(lock, useful);
    } else if (!has_spun && state == TaskState::running && queues_[source].is_cheap()) {
      has_spun = true;
      spin(lock, task);
    } else if (!sleep_until(lock, task, deadline)) {
      return nullptr;
    }
  }
}

void PrefetchEngine::spin(Lock& lock, const Task* task) {
  lock.unlock();
  for (int turn = 0; turn < 1000 && task->state.load(std::memory_order_acquire) == TaskState::running; ++turn) {
    pause();
  }
  lock.lock();
}

/// False once the deadline has passed and the task isn't ready.
bool PrefetchEngine::sleep_until(Lock& lock, Task* task, Clock::time_point deadline) {
  task->awaited = true;
  if (task->state.load(std::memory_order_relaxed) == TaskState::queued) {
    urgent_ = task;
    wake_.notify_one();
  }
  const std::cv_status status = ready_.wait_until(lock, deadline);
  task->awaited = false;
  if (urgent_ == task) {
    urgent_ = nullptr;
  }
  return status != std::cv_status::timeout || task->state.load(std::memory_order_relaxed) == TaskState::ready ||
         closed_;
}

std::size_t PrefetchEngine::discard(std::size_t source) {
  DeferredDestruction deferred;
  const std::lock_guard lock(mutex_);
  check_open();
  check_source(source);
  return drop_all(queues_[source], deferred);
}

void PrefetchEngine::reset() {
  DeferredDestruction deferred;
  const std::lock_guard lock(mutex_);
  check_open();
  for (SourceQueue& queue : queues_) {
    drop_all(queue, deferred);
  }
}

PrefetchStats PrefetchEngine::stats() const {
  const std::lock_guard lock(mutex_);
  PrefetchStats result{
      .wait_s = wait_s_,
      .num_taken = num_taken_,
      .num_taken_ready = taken_ready_,
      .num_in_caller = num_in_caller_,
      .num_wakeups = num_wakeups_,
      .num_queued = order_.size(),
      .num_running = budget_.num_running(),
      .num_ready = budget_.num_ready(),
      .mean_ready = num_taken_ == 0 ? 0.0 : static_cast<double>(sum_ready_) / static_cast<double>(num_taken_),
      .bytes_held = budget_.bytes_held(),
      .peak_bytes_held = budget_.peak_bytes(),
      .peak_batches_held = budget_.peak_batches(),
      .sources = {}};
  for (const SourceQueue& queue : queues_) {
    result.sources.push_back(queue.stats);
  }
  return result;
}

bool PrefetchEngine::close(std::chrono::nanoseconds max_wait) {
  DeferredDestruction deferred;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (SourceQueue& queue : queues_) {
      drop_all(queue, deferred);
    }
    wake_.notify_all();
    ready_.notify_all();
  }
  if (workers_.is_own_thread()) {
    return false;
  }
  const std::lock_guard lock(joining_);
  return workers_.join_for(max_wait);
}

bool PrefetchEngine::is_closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void PrefetchEngine::check_open() const {
  if (closed_) {
    throw Closed("prefetcher: it is closed");
  }
}

void PrefetchEngine::check_source(std::size_t source) const {
  if (source >= queues_.size()) {
    throw ConfigError(format_message("source: must be in [0, {}), but is {}", queues_.size(), source));
  }
}

void PrefetchEngine::check_draws(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
                                 std::span<const std::int64_t> batches) const {
  for (std::size_t k = 0; k < sources.size(); ++k) {
    if (sources[k] < 0 || static_cast<std::size_t>(sources[k]) >= queues_.size() || passes[k] < 0 || batches[k] < 0) {
      throw ConfigError(format_message(
          "request: position {} must name a source in [0, {}) and a pass and batch >= 0, but is ({}, {}, {})", k,
          queues_.size(), sources[k], passes[k], batches[k]));
    }
  }
}

Task* PrefetchEngine::front(std::size_t source) const {
  check_open();
  check_source(source);
  const SourceQueue& queue = queues_[source];
  if (queue.fifo.empty()) {
    throw ConfigError(format_message("source: no batch of source {} is requested; call request first", source));
  }
  return queue.fifo.front();
}

/// The next task for a worker: what the consumer waits for, else the first in order that may begin and fits.
Task* PrefetchEngine::next_task() const {
  // guard: what is waited for
  if (urgent_ != nullptr && queues_[urgent_->source].may_begin()) {
    return urgent_;
  }
  for (Task* task = order_.first(); task != nullptr; task = task->next) {
    const SourceQueue& queue = queues_[task->source];
    if (!queue.may_begin() || budget_.is_exceeded_by(queue)) {
      continue;
    }
    return budget_.fits(queue) ? task : nullptr;  // never past one that doesn't fit: small ones would starve it
  }
  return nullptr;
}

/// What the consumer had better fetch itself than wait for `awaited`: that batch, or the next in order while a worker
/// is about to finish it. Nothing if that could keep it from noticing signals, or for long from a batch that is ready.
Task* PrefetchEngine::task_for_caller(Task* awaited) const {
  const SourceQueue& queue = queues_[awaited->source];
  if (awaited->state.load(std::memory_order_relaxed) == TaskState::queued) {
    return queue.may_begin() && (num_threads_ == 0 || !queue.source->may_block()) ? awaited : nullptr;
  }
  Task* const next = next_task();
  if (next == nullptr) {
    return nullptr;
  }
  const SourceQueue& next_queue = queues_[next->source];
  const bool is_similar = next_queue.expected_fetch_s() <= 2 * queue.expected_fetch_s() + kWakeUpCost_s;
  return is_similar && !next_queue.source->may_block() ? next : nullptr;
}

/// Wakes one sleeping worker if that is worth it: for a slow source at once, for a cheap one when half the budget is
/// free.
void PrefetchEngine::wake_worker() {
  if (num_parked_ <= num_waking_ || order_.first() == nullptr) {
    return;
  }
  const Task* task = next_task();
  if (task == nullptr || (queues_[task->source].is_cheap() && !budget_.is_half_free())) {
    return;
  }
  ++num_wakeups_;
  ++num_waking_;
  wake_.notify_one();
}

void PrefetchEngine::begin(Task* task) {
  if (urgent_ == task) {
    urgent_ = nullptr;
  }
  order_.remove(task);
  task->state.store(TaskState::running, std::memory_order_relaxed);
  budget_.begin(*task, queues_[task->source]);
}

/// Fetches without the lock, then files the result. `lock` is held before and after.
// A forced unwind has no object, so the reference that catches one is null.
__attribute__((no_sanitize("null"))) void PrefetchEngine::run(Lock& lock, Task* task) {
  SourceQueue& queue = queues_[task->source];
  NativeSource& source = *queue.source;
  std::unique_ptr<Payload> payload;
  std::exception_ptr error;
  lock.unlock();
  const Clock::time_point begin = Clock::now();
  try {
    payload = source.fetch(task->pass, task->batch);
    if (payload == nullptr) {
      throw ConfigError("fetch: must give a payload, but gave none");
    }
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {  // Python ends the thread: not ours to catch
    throw;
#endif
  } catch (...) {
    error = std::current_exception();
  }
  const double fetch_s = seconds(Clock::now() - begin);
  const std::size_t bytes = payload != nullptr ? payload->num_bytes() : 0;
  lock.lock();
  queue.stats.fetch_s += fetch_s;
  ++queue.stats.num_fetched;
  budget_.end(*task, queue, bytes);
  if (!task->dropped) {
    budget_.add_ready(*task, bytes);
  }
  file_result(lock, task, std::move(payload), std::move(error));
}

/// Leaves the result for the consumer, or destroys it without the lock if the task was dropped.
void PrefetchEngine::file_result(Lock& lock, Task* task, std::unique_ptr<Payload> payload, std::exception_ptr error) {
  if (task->dropped) {
    slab_.recycle(task);
    if (closed_ || payload != nullptr || error != nullptr) {
      lock.unlock();
      payload.reset();
      error = nullptr;
      lock.lock();
    }
    return;
  }
  task->payload = std::move(payload);
  task->error = std::move(error);
  task->state.store(TaskState::ready, std::memory_order_release);
  if (task->awaited) {
    ready_.notify_all();
  }
}

/// Takes the ready front of a FIFO out; releases the lock.
std::unique_ptr<Payload> PrefetchEngine::finish(Lock& lock, Task* task) {
  SourceQueue& queue = queues_[task->source];
  std::unique_ptr<Payload> payload = std::move(task->payload);
  std::exception_ptr error = std::exchange(task->error, nullptr);
  queue.fifo.pop_front();
  sum_ready_ += budget_.num_ready();
  budget_.remove_ready(*task);
  ++num_taken_;
  ++queue.stats.num_taken;
  slab_.recycle(task);
  wake_worker();
  lock.unlock();
  if (error != nullptr) {
    std::rethrow_exception(std::move(error));
  }
  return payload;
}

std::size_t PrefetchEngine::drop_all(SourceQueue& queue, DeferredDestruction& deferred) {
  const std::size_t num_dropped = queue.fifo.size();
  for (Task* task : queue.fifo) {
    switch (task->state.load(std::memory_order_relaxed)) {
      case TaskState::queued:
        if (urgent_ == task) {
          urgent_ = nullptr;
        }
        order_.remove(task);
        slab_.recycle(task);
        break;
      case TaskState::running:
        task->dropped = true;
        break;
      case TaskState::ready:
        deferred.payloads.push_back(std::move(task->payload));
        deferred.errors.push_back(std::move(task->error));
        budget_.remove_ready(*task);
        slab_.recycle(task);
        break;
    }
  }
  queue.fifo.clear();
  ready_.notify_all();
  wake_worker();
  return num_dropped;
}

void PrefetchEngine::work() {
  Lock lock(mutex_);
  while (!closed_) {
    Task* task = next_task();
    if (task == nullptr) {
      ++num_parked_;
      wake_.wait(lock);
      --num_parked_;
      if (num_waking_ > 0) {
        --num_waking_;
      }
      continue;
    }
    begin(task);
    if (!queues_[task->source].is_cheap()) {
      wake_worker();  // slow fetches run side by side
    }
    run(lock, task);
  }
}

}  // namespace mtf
