/// Fetches the batches of many sources ahead of their use: one order, one pool of threads, one budget.
///
/// The consumer announces the draws of its schedule (`request`) and takes them source by source (`take`). Worker
/// threads fetch in the announced order while less than the budget is held: batches that are being fetched or wait to
/// be taken. What the consumer waits for is fetched whatever the budget says, so no order of requests and takes can
/// deadlock, and at most the budget and that one batch are held.
///
/// Handing over a small batch costs no wake-up: workers sleep only when the budget is full and are woken when half of
/// it is free, and a batch that no worker has begun is fetched by the consumer itself, which then is as fast as if
/// there were no threads.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "mtf/fork_guard.hpp"
#include "mtf/prefetch/native_source.hpp"

namespace mtf {

class PrefetchEngine;

struct PrefetchOptions {
  std::size_t num_threads = 1;   ///< 0: each batch is fetched by the call that takes it
  std::size_t max_batches = 16;  ///< budget in batches, at least 1
  std::size_t max_bytes = 0;     ///< budget in bytes; 0 = no limit in bytes

  friend bool operator==(const PrefetchOptions&, const PrefetchOptions&) = default;
};

/// Where the time goes. A consumer that waits while `num_ready` is 0 needs more threads or faster storage; one that
/// never waits while `num_ready` stays at the budget needs nothing.
struct PrefetchStats {
  struct Source {
    std::uint64_t num_fetched = 0;
    std::uint64_t num_taken = 0;
    double fetch_s = 0;  ///< summed over threads

    friend bool operator==(const Source&, const Source&) = default;
  };

  double wait_s = 0;  ///< the consumer's time in `take` beyond picking up what was ready
  std::uint64_t num_taken = 0;
  std::uint64_t num_taken_ready = 0;  ///< of these, those that were ready when asked for
  std::uint64_t num_in_caller = 0;    ///< batches that the consumer fetched itself
  std::uint64_t num_wakeups = 0;      ///< times a sleeping worker was woken
  std::size_t num_queued = 0;         ///< requested, not begun
  std::size_t num_running = 0;
  std::size_t num_ready = 0;
  double mean_ready = 0;  ///< ready batches found at a take, on average
  std::size_t bytes_held = 0;
  std::size_t peak_bytes_held = 0;
  std::size_t peak_batches_held = 0;
  std::vector<Source> sources;
};

/// One consumer calls `request` and `take`; every other method may be called on any thread at any time.
/// In a forked child every method throws Closed, and nothing is joined or released.
class Prefetcher {
 public:
  /// Starts no thread yet. Throws: ConfigError for a budget of no batches or a missing source.
  Prefetcher(std::vector<std::shared_ptr<NativeSource>> sources, PrefetchOptions options);
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Closes. A thread that is still inside a fetch after `kGrace` is left behind with all that it uses.
  ~Prefetcher();

  static constexpr std::chrono::seconds kGrace{5};

  /// One more source; returns its number. Throws: Closed, ConfigError.
  std::size_t add_source(std::shared_ptr<NativeSource> source);

  /// Appends draws, in the order in which they will be taken; three spans of one length. Starts the threads.
  /// Complexity: O(length), no allocation in the steady state. Throws, with nothing appended: Closed; ConfigError for
  /// an unknown source; std::system_error if the system gives too few threads, the next call asks for those again.
  void request(std::span<const std::int32_t> sources, std::span<const std::int64_t> passes,
               std::span<const std::int64_t> batches);

  /// The oldest requested batch of `source`; nothing if it isn't there after `max_wait` (call again).
  /// Throws: whatever its fetch threw, which counts as taken; Closed, also while waiting; ConfigError if no batch of
  /// this source is requested.
  [[nodiscard]] std::unique_ptr<Payload> take(std::size_t source, std::chrono::nanoseconds max_wait);

  /// As `take` with a batch that is ready now; nothing, at once, for any other.
  [[nodiscard]] std::unique_ptr<Payload> take_ready(std::size_t source);

  /// Forgets every batch of `source` that was requested and not taken; returns how many. Throws: Closed.
  std::size_t discard(std::size_t source);

  /// Forgets every batch that was requested and not taken.
  void reset();

  /// Throws: Closed in a forked child only.
  [[nodiscard]] PrefetchStats stats() const;

  /// Wakes everybody, forgets every batch and waits at most `max_wait` for the threads. True once all have ended.
  /// Idempotent; on a worker's own thread it doesn't wait.
  bool close(std::chrono::nanoseconds max_wait = kGrace) noexcept;

 private:
  [[nodiscard]] PrefetchEngine& engine() const;

  ForkGuard guard_;
  std::shared_ptr<PrefetchEngine> engine_;
};

}  // namespace mtf
