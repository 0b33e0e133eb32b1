#include "mtf/gather/buffer_pool.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <utility>

namespace mtf {

namespace {

struct SizeClass {
  std::size_t index;
  std::size_t num_bytes;
};

/// The smallest of 64, 80, 96, 112, 128, 160 ... that holds `num_bytes`, rounded up to whole cache lines.
SizeClass size_class(std::size_t num_bytes) {
  if (num_bytes > (std::size_t{1} << 62)) {
    throw std::bad_alloc();
  }
  const std::size_t lines = std::max<std::size_t>(1, (num_bytes + BufferPool::kAlignment - 1) / BufferPool::kAlignment);
  const int exponent = std::max(0, static_cast<int>(std::bit_width(lines - 1)) - 3);
  const std::size_t step = std::size_t{1} << exponent;
  const std::size_t rounded = (lines + step - 1) / step;  // in (4, 8] beyond the first eight lines
  return {static_cast<std::size_t>(exponent) * 4 + rounded, rounded * step * BufferPool::kAlignment};
}

}  // namespace

Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::move(other.pool_)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    Buffer old(std::move(*this));
    pool_ = std::move(other.pool_);
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
  }
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) {
    pool_->give_back(data_, num_bytes_);
  }
}

std::shared_ptr<BufferPool> BufferPool::create(std::size_t max_idle_bytes) {
  return std::shared_ptr<BufferPool>(new BufferPool(max_idle_bytes));
}

BufferPool::~BufferPool() {
  for (const auto& blocks : idle_) {
    for (std::byte* block : blocks) {
      std::free(block);
    }
  }
}

Buffer BufferPool::acquire(std::size_t num_bytes) {
  const SizeClass wanted = size_class(num_bytes);
  Buffer buffer;
  buffer.num_bytes_ = num_bytes;
  const bool pooled = !guard_.inherited();
  if (pooled) {
    const std::lock_guard lock(mutex_);
    auto& blocks = idle_[wanted.index];
    if (!blocks.empty()) {
      buffer.data_ = blocks.back();
      blocks.pop_back();
      stats_.idle_bytes -= wanted.num_bytes;
      stats_.live_bytes += wanted.num_bytes;
      ++stats_.num_reused;
    }
  }
  if (buffer.data_ == nullptr) {
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, wanted.num_bytes));
    if (buffer.data_ == nullptr) {
      throw std::bad_alloc();
    }
    if (pooled) {
      const std::lock_guard lock(mutex_);
      stats_.live_bytes += wanted.num_bytes;
      ++stats_.num_allocated;
    }
  }
  buffer.pool_ = shared_from_this();
  return buffer;
}

BufferPool::Stats BufferPool::stats() const {
  if (guard_.inherited()) {
    return {};
  }
  const std::lock_guard lock(mutex_);
  return stats_;
}

void BufferPool::give_back(std::byte* data, std::size_t num_bytes) noexcept {
  if (!guard_.inherited()) {
    const SizeClass size = size_class(num_bytes);
    const std::lock_guard lock(mutex_);
    stats_.live_bytes -= size.num_bytes;
    // Two of a size always stay, else batches above the limit would be faulted in afresh every time.
    if (stats_.idle_bytes + size.num_bytes <= std::max(max_idle_bytes_, 2 * size.num_bytes)) {
      try {
        idle_[size.index].push_back(data);
        stats_.idle_bytes += size.num_bytes;
        return;
      } catch (const std::bad_alloc&) {  // no room to remember it: release it instead
      }
    }
  }
  std::free(data);
}

}  // namespace mtf
