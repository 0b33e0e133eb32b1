/// Memory for batches, kept warm: a buffer that dies goes back to its pool, and the next batch of that size takes it.
///
/// Fresh memory of a batch costs page faults, which can take longer than the copy into it. Sizes are rounded up to one
/// of four classes per doubling, so that sources of similar batch sizes share what is idle.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "mtf/fork_guard.hpp"

namespace mtf {

class BufferPool;

/// One block of memory, aligned to 64 bytes; gives itself back to its pool when it dies, on any thread.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  friend class BufferPool;

  std::shared_ptr<BufferPool> pool_;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

/// Buffers keep their pool alive. Thread safety: all methods; in a forked child it still gives memory but pools
/// nothing, because a thread that the child doesn't have may have held its lock.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kMaxIdleBytes = std::size_t{64} << 20;

  struct Stats {
    std::uint64_t num_allocated = 0;  ///< buffers taken from the system since the start
    std::uint64_t num_reused = 0;     ///< buffers taken from the pool
    std::size_t idle_bytes = 0;       ///< held for reuse now
    std::size_t live_bytes = 0;       ///< in buffers now

    friend bool operator==(const Stats&, const Stats&) = default;
  };

  [[nodiscard]] static std::shared_ptr<BufferPool> create(std::size_t max_idle_bytes = kMaxIdleBytes);
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool();

  /// A buffer of at least `num_bytes`, contents unspecified. Throws: std::bad_alloc. Complexity: O(1) when one is idle.
  [[nodiscard]] Buffer acquire(std::size_t num_bytes);

  [[nodiscard]] Stats stats() const;

 private:
  friend class Buffer;

  explicit BufferPool(std::size_t max_idle_bytes) : max_idle_bytes_(max_idle_bytes) {}

  void give_back(std::byte* data, std::size_t num_bytes) noexcept;

  static constexpr std::size_t kNumClasses = 4 * 64;

  const std::size_t max_idle_bytes_;
  const ForkGuard guard_;
  mutable std::mutex mutex_;
  std::array<std::vector<std::byte*>, kNumClasses> idle_;
  Stats stats_;
};

}  // namespace mtf
