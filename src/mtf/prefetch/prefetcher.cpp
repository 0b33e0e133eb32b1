#include "mtf/prefetch/prefetcher.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <utility>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "mtf/error.hpp"
#include "mtf/prefetch/worker_pool.hpp"

namespace mtf {

namespace {

using Clock = std::chrono::steady_clock;

// A fetch that takes less than this isn't worth a wake-up of its own, and is waited for by spinning.
constexpr double kWakeUpCost_s = 50e-6;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

enum class TaskState : std::uint8_t { queued, running, ready };

/// One requested batch. Lives in the engine's slab for ever and is used again, so that reading `state` without the lock
/// is always allowed.
struct Task {
  std::atomic<TaskState> state{TaskState::queued};
  bool dropped = false;       // forgotten while it ran: whoever runs it clears it away
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

/// The queued tasks of all sources in the order of their requests.
class RequestOrder {
 public:
  [[nodiscard]] Task* first() const noexcept { return first_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  void append(Task* task) noexcept {
    task->previous = last_;
    task->next = nullptr;
    (last_ != nullptr ? last_->next : first_) = task;
    last_ = task;
    ++size_;
  }

  void remove(Task* task) noexcept {
    (task->previous != nullptr ? task->previous->next : first_) = task->next;
    (task->next != nullptr ? task->next->previous : last_) = task->previous;
    --size_;
  }

 private:
  Task* first_ = nullptr;
  Task* last_ = nullptr;
  std::size_t size_ = 0;
};

struct SourceQueue {
  explicit SourceQueue(std::shared_ptr<NativeSource> given) : source(std::move(given)) {
    max_batch_bytes = source->max_batch_bytes();
  }

  /// Bytes that a batch not yet fetched is expected to need, once anything is known about it.
  [[nodiscard]] std::size_t expected_bytes() const noexcept { return std::max(max_batch_bytes, largest_seen); }

  /// False before the first batch of a source that doesn't announce its batches' size.
  [[nodiscard]] bool is_size_known() const noexcept { return max_batch_bytes != 0 || stats.num_fetched != 0; }

  /// Seconds that a fetch is expected to take; sources that may block count as slow until they were seen to be fast.
  [[nodiscard]] double expected_fetch_s() const noexcept {
    if (stats.num_fetched == 0) return source->may_block() ? 1.0 : 0.0;
    return stats.fetch_s / static_cast<double>(stats.num_fetched);
  }

  [[nodiscard]] bool is_cheap() const noexcept { return expected_fetch_s() < kWakeUpCost_s; }

  std::shared_ptr<NativeSource> source;
  std::deque<Task*> fifo;
  std::size_t max_batch_bytes = 0;
  std::size_t largest_seen = 0;
  std::size_t num_running = 0;
  PrefetchStats::Source stats;
};

/// What was taken out under the lock and is destroyed after it: a payload's destructor may need the interpreter.
struct Debris {
  std::vector<std::unique_ptr<Payload>> payloads;
  std::vector<std::exception_ptr> errors;
};

}  // namespace

/// All state, shared by the Prefetcher and its threads. Every field behind `mutex_` unless it says otherwise.
class Prefetcher::Engine : public std::enable_shared_from_this<Engine> {
 public:
  explicit Engine(PrefetchOptions options) : options_(options) {
    if (options.max_batches == 0) throw ConfigError("max_batches: must be at least 1, but is 0");
  }

  std::size_t add_source(std::shared_ptr<NativeSource> source) {
    if (source == nullptr) throw ConfigError("sources: must all be given, but one is missing");
    const std::lock_guard lock(mutex_);
    check_open();
    queues_.emplace_back(std::move(source));
    return queues_.size() - 1;
  }

  void request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
               std::span<const std::int64_t> batches) {
    if (sources.size() != passes.size() || sources.size() != batches.size()) {
      throw ConfigError("request: sources, passes and batches must be equally long, but are " +
                        std::to_string(sources.size()) + ", " + std::to_string(passes.size()) + " and " +
                        std::to_string(batches.size()));
    }
    const std::lock_guard lock(mutex_);
    check_open();
    for (std::size_t k = 0; k < sources.size(); ++k) {
      if (sources[k] < 0 || static_cast<std::size_t>(sources[k]) >= queues_.size() || passes[k] < 0 || batches[k] < 0) {
        throw ConfigError("request: position " + std::to_string(k) + " must name a source in [0, " +
                          std::to_string(queues_.size()) + ") and a pass and batch >= 0, but is (" +
                          std::to_string(sources[k]) + ", " + std::to_string(passes[k]) + ", " +
                          std::to_string(batches[k]) + ")");
      }
    }
    if (!sources.empty() && workers_.size() < options_.num_threads) {
      workers_.start(options_.num_threads - workers_.size(), [self = shared_from_this()] { self->work(); });
    }
    for (std::size_t k = 0; k < sources.size(); ++k) {
      Task* task = new_task();
      task->source = static_cast<std::uint32_t>(sources[k]);
      task->pass = static_cast<std::uint64_t>(passes[k]);
      task->batch = static_cast<std::uint64_t>(batches[k]);
      queues_[task->source].fifo.push_back(task);
      order_.append(task);
    }
    wake_worker();
  }

  std::unique_ptr<Payload> take(std::size_t source, std::chrono::nanoseconds max_wait, bool only_ready) {
    std::unique_lock lock(mutex_);
    Task* task = front(source);
    if (task->state.load(std::memory_order_relaxed) == TaskState::ready) {
      ++taken_ready_;
      return finish(lock, task);
    }
    if (only_ready) return nullptr;
    const Clock::time_point begin = Clock::now();
    const Clock::time_point deadline = begin + max_wait;
    struct CountWait {
      Engine& engine;
      std::unique_lock<std::mutex>& held;
      Clock::time_point since;
      ~CountWait() {
        if (!held.owns_lock()) held.lock();
        engine.wait_s_ += seconds(Clock::now() - since);
        held.unlock();
      }
    } const count_wait{*this, lock, begin};

    bool has_spun = false;
    while (true) {
      const TaskState state = task->state.load(std::memory_order_relaxed);
      if (state == TaskState::ready) return finish(lock, task);
      Task* const useful = task_for_caller(task);
      if (useful != nullptr) {
        ++num_in_caller_;
        begin_task(useful);
        run(lock, useful);
      } else if (!has_spun && state == TaskState::running && queues_[source].is_cheap()) {
        has_spun = true;
        lock.unlock();
        for (int spin = 0; spin < 1000 && task->state.load(std::memory_order_acquire) == TaskState::running; ++spin)
          pause();
        lock.lock();
      } else {
        task->awaited = true;
        if (state == TaskState::queued) {
          urgent_ = task;
          wake_.notify_one();
        }
        const std::cv_status status = ready_.wait_until(lock, deadline);
        task->awaited = false;
        if (urgent_ == task) urgent_ = nullptr;
        if (status == std::cv_status::timeout && task->state.load(std::memory_order_relaxed) != TaskState::ready &&
            !closed_) {
          return nullptr;
        }
      }
      task = front(source);  // anything may have happened meanwhile: closed, discarded
    }
  }

  std::size_t discard(std::size_t source) {
    Debris debris;
    const std::lock_guard lock(mutex_);
    check_open();
    check_source(source);
    return drop_all(queues_[source], debris);
  }

  void reset() {
    Debris debris;
    const std::lock_guard lock(mutex_);
    check_open();
    for (SourceQueue& queue : queues_) drop_all(queue, debris);
  }

  PrefetchStats stats() const {
    const std::lock_guard lock(mutex_);
    PrefetchStats result{
        .wait_s = wait_s_,
        .num_taken = num_taken_,
        .num_taken_ready = taken_ready_,
        .num_in_caller = num_in_caller_,
        .num_wakeups = num_wakeups_,
        .num_queued = order_.size(),
        .num_running = num_running_,
        .num_ready = num_ready_,
        .mean_ready = num_taken_ == 0 ? 0.0 : static_cast<double>(sum_ready_) / static_cast<double>(num_taken_),
        .bytes_held = bytes_held_,
        .peak_bytes_held = peak_bytes_,
        .peak_batches_held = peak_batches_,
        .sources = {}};
    for (const SourceQueue& queue : queues_) result.sources.push_back(queue.stats);
    return result;
  }

  bool close(std::chrono::nanoseconds max_wait) {
    Debris debris;
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      for (SourceQueue& queue : queues_) drop_all(queue, debris);
      wake_.notify_all();
      ready_.notify_all();
    }
    if (workers_.is_own_thread()) return false;
    const std::lock_guard lock(joining_);
    return workers_.join_for(max_wait);
  }

  [[nodiscard]] bool is_closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  void check_open() const {
    if (closed_) throw Closed("prefetcher: it is closed");
  }

  void check_source(std::size_t source) const {
    if (source >= queues_.size()) {
      throw ConfigError("source: must be in [0, " + std::to_string(queues_.size()) + "), but is " +
                        std::to_string(source));
    }
  }

  Task* front(std::size_t source) const {
    check_open();
    check_source(source);
    const SourceQueue& queue = queues_[source];
    if (queue.fifo.empty()) {
      throw ConfigError("source: no batch of source " + std::to_string(source) + " is requested; call request first");
    }
    return queue.fifo.front();
  }

  Task* new_task() {
    if (unused_.empty()) {
      if (unused_.capacity() <= slab_.size()) unused_.reserve(2 * slab_.size() + 64);
      slab_.emplace_back();
      return &slab_.back();
    }
    Task* task = unused_.back();
    unused_.pop_back();
    return task;
  }

  void recycle(Task* task) noexcept {
    task->payload = nullptr;
    task->error = nullptr;
    task->bytes = 0;
    task->dropped = false;
    task->awaited = false;
    task->state.store(TaskState::queued, std::memory_order_relaxed);
    unused_.push_back(task);  // never allocates: its capacity is at least the slab's size
  }

  /// A source that isn't thread-safe is served by one thread at a time.
  [[nodiscard]] bool may_begin(const SourceQueue& queue) const {
    return queue.num_running == 0 || queue.source->is_concurrent();
  }

  [[nodiscard]] bool fits_budget(const SourceQueue& queue) const {
    if (num_running_ + num_ready_ >= options_.max_batches) return false;
    if (options_.max_bytes == 0) return true;
    if (!queue.is_size_known() && num_unknown_running_ > 0) return false;  // only one may exceed what is expected
    return bytes_held_ + expected_bytes(queue) <= options_.max_bytes;
  }

  /// A batch of unknown size is taken to be as large as the largest of all sources so far.
  [[nodiscard]] std::size_t expected_bytes(const SourceQueue& queue) const noexcept {
    return queue.is_size_known() ? queue.expected_bytes() : largest_seen_;
  }

  /// A batch greater than the whole budget is never fetched ahead, only when the consumer waits for it.
  [[nodiscard]] bool exceeds_budget(const SourceQueue& queue) const {
    return options_.max_bytes != 0 && expected_bytes(queue) > options_.max_bytes;
  }

  /// The next task for a worker: what the consumer waits for, else the first in order that may begin and fits.
  [[nodiscard]] Task* next_task() const {
    if (urgent_ != nullptr && may_begin(queues_[urgent_->source])) return urgent_;
    for (Task* task = order_.first(); task != nullptr; task = task->next) {
      const SourceQueue& queue = queues_[task->source];
      if (!may_begin(queue) || exceeds_budget(queue)) continue;
      return fits_budget(queue) ? task : nullptr;  // never past one that doesn't fit: small ones would starve it
    }
    return nullptr;
  }

  /// What the consumer had better fetch itself than wait for `awaited`: that batch, or the next in order while a worker
  /// is about to finish it. Nothing if that could keep it from noticing signals, or for long from a batch that is
  /// ready.
  [[nodiscard]] Task* task_for_caller(Task* awaited) const {
    const SourceQueue& queue = queues_[awaited->source];
    if (awaited->state.load(std::memory_order_relaxed) == TaskState::queued) {
      return may_begin(queue) && (options_.num_threads == 0 || !queue.source->may_block()) ? awaited : nullptr;
    }
    Task* const next = next_task();
    if (next == nullptr) return nullptr;
    const SourceQueue& next_queue = queues_[next->source];
    const bool is_similar = next_queue.expected_fetch_s() <= 2 * queue.expected_fetch_s() + kWakeUpCost_s;
    return is_similar && !next_queue.source->may_block() ? next : nullptr;
  }

  /// Wakes one sleeping worker if that is worth it: for a slow source at once, for a cheap one when half the budget is
  /// free.
  void wake_worker() {
    if (num_parked_ <= num_waking_ || order_.first() == nullptr) return;
    const Task* task = next_task();
    if (task == nullptr) return;
    if (queues_[task->source].is_cheap() &&
        (num_running_ + num_ready_ > options_.max_batches / 2 ||
         (options_.max_bytes != 0 && bytes_held_ > options_.max_bytes / 2 && num_ready_ > 0))) {
      return;
    }
    ++num_wakeups_;
    ++num_waking_;
    wake_.notify_one();
  }

  void begin_task(Task* task) {
    SourceQueue& queue = queues_[task->source];
    if (urgent_ == task) urgent_ = nullptr;
    order_.remove(task);
    task->state.store(TaskState::running, std::memory_order_relaxed);
    task->bytes = expected_bytes(queue);
    task->is_size_known = queue.is_size_known();
    if (!task->is_size_known) ++num_unknown_running_;
    ++queue.num_running;
    ++num_running_;
    hold(task->bytes);
    peak_batches_ = std::max(peak_batches_, num_running_ + num_ready_);
  }

  void hold(std::size_t bytes) {
    bytes_held_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, bytes_held_);
  }

  /// Fetches without the lock, then files the result. `lock` is held before and after.
  // A forced unwind has no object, so the reference that catches one is null.
  __attribute__((no_sanitize("null"))) void run(std::unique_lock<std::mutex>& lock, Task* task) {
    SourceQueue& queue = queues_[task->source];
    NativeSource& source = *queue.source;
    std::unique_ptr<Payload> payload;
    std::exception_ptr error;
    lock.unlock();
    const Clock::time_point begin = Clock::now();
    try {
      payload = source.fetch(task->pass, task->batch);
      if (payload == nullptr) throw ConfigError("fetch: must give a payload, but gave none");
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
    queue.largest_seen = std::max(queue.largest_seen, bytes);
    largest_seen_ = std::max(largest_seen_, bytes);
    if (!task->is_size_known) --num_unknown_running_;
    --queue.num_running;
    --num_running_;
    bytes_held_ -= task->bytes;
    if (task->dropped) {
      recycle(task);
      if (closed_ || payload != nullptr || error != nullptr) {
        lock.unlock();
        payload.reset();
        error = nullptr;
        lock.lock();
      }
      return;
    }
    task->bytes = bytes;
    hold(bytes);
    ++num_ready_;
    task->payload = std::move(payload);
    task->error = std::move(error);
    task->state.store(TaskState::ready, std::memory_order_release);
    if (task->awaited) ready_.notify_all();
  }

  /// Takes the ready front of a FIFO out; releases the lock.
  std::unique_ptr<Payload> finish(std::unique_lock<std::mutex>& lock, Task* task) {
    SourceQueue& queue = queues_[task->source];
    std::unique_ptr<Payload> payload = std::move(task->payload);
    std::exception_ptr error = std::exchange(task->error, nullptr);
    queue.fifo.pop_front();
    bytes_held_ -= task->bytes;
    sum_ready_ += num_ready_;
    --num_ready_;
    ++num_taken_;
    ++queue.stats.num_taken;
    recycle(task);
    wake_worker();
    lock.unlock();
    if (error != nullptr) std::rethrow_exception(std::move(error));
    return payload;
  }

  std::size_t drop_all(SourceQueue& queue, Debris& debris) {
    const std::size_t num_dropped = queue.fifo.size();
    for (Task* task : queue.fifo) {
      switch (task->state.load(std::memory_order_relaxed)) {
        case TaskState::queued:
          if (urgent_ == task) urgent_ = nullptr;
          order_.remove(task);
          recycle(task);
          break;
        case TaskState::running:
          task->dropped = true;
          break;
        case TaskState::ready:
          debris.payloads.push_back(std::move(task->payload));
          debris.errors.push_back(std::move(task->error));
          bytes_held_ -= task->bytes;
          --num_ready_;
          recycle(task);
          break;
      }
    }
    queue.fifo.clear();
    ready_.notify_all();
    wake_worker();
    return num_dropped;
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (!closed_) {
      Task* task = next_task();
      if (task == nullptr) {
        ++num_parked_;
        wake_.wait(lock);
        --num_parked_;
        if (num_waking_ > 0) --num_waking_;
        continue;
      }
      begin_task(task);
      if (!queues_[task->source].is_cheap()) wake_worker();  // slow fetches run side by side
      run(lock, task);
    }
  }

  const PrefetchOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;    // for workers
  std::condition_variable ready_;   // for the consumer
  std::deque<SourceQueue> queues_;  // a deque: a running fetch keeps a reference while a source is added
  std::deque<Task> slab_;
  std::vector<Task*> unused_;
  RequestOrder order_;
  Task* urgent_ = nullptr;  // queued, and the consumer sleeps until it is ready
  bool closed_ = false;
  std::size_t num_parked_ = 0;
  std::size_t num_waking_ = 0;  // of the parked, those already told to wake up
  std::size_t num_running_ = 0;
  std::size_t num_unknown_running_ = 0;  // of these, the ones whose size can't be foreseen
  std::size_t largest_seen_ = 0;         // bytes of the largest batch of any source
  std::size_t num_ready_ = 0;
  std::size_t bytes_held_ = 0;
  std::size_t peak_bytes_ = 0;
  std::size_t peak_batches_ = 0;
  std::uint64_t num_taken_ = 0;
  std::uint64_t taken_ready_ = 0;
  std::uint64_t num_in_caller_ = 0;
  std::uint64_t num_wakeups_ = 0;
  std::uint64_t sum_ready_ = 0;
  double wait_s_ = 0;
  std::mutex joining_;
  WorkerPool workers_;
};

Prefetcher::Prefetcher(std::vector<std::shared_ptr<NativeSource>> sources, PrefetchOptions options)
    : engine_(std::make_shared<Engine>(options)) {
  for (auto& source : sources) engine_->add_source(std::move(source));
}

Prefetcher::~Prefetcher() {
  if (guard_.inherited()) {
    new std::shared_ptr<Engine>(std::move(engine_));  // its threads aren't here and its locks may be held for ever
    return;
  }
  close(engine_->is_closed() ? std::chrono::nanoseconds{0} : kGrace);  // whoever closed it has waited
}

Prefetcher::Engine& Prefetcher::engine() const {
  if (guard_.inherited()) {
    throw Closed("prefetcher: it belongs to the parent process; make a new one after the fork");
  }
  return *engine_;
}

std::size_t Prefetcher::add_source(std::shared_ptr<NativeSource> source) {
  return engine().add_source(std::move(source));
}

void Prefetcher::request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
                         std::span<const std::int64_t> batches) {
  engine().request(sources, passes, batches);
}

std::unique_ptr<Payload> Prefetcher::take(std::size_t source, std::chrono::nanoseconds max_wait) {
  return engine().take(source, max_wait, false);
}

std::unique_ptr<Payload> Prefetcher::take_ready(std::size_t source) {
  return engine().take(source, std::chrono::nanoseconds{0}, true);
}

std::size_t Prefetcher::discard(std::size_t source) { return engine().discard(source); }

void Prefetcher::reset() { engine().reset(); }

PrefetchStats Prefetcher::stats() const { return engine().stats(); }

bool Prefetcher::close(std::chrono::nanoseconds max_wait) noexcept {
  return guard_.inherited() || engine_->close(max_wait);
}

}  // namespace mtf
