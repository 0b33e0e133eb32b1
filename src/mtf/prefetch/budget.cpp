#include "mtf/prefetch/budget.hpp"

#include <algorithm>

#include "mtf/error.hpp"

namespace mtf {

Budget::Budget(std::size_t max_batches, std::size_t max_bytes) : max_batches_(max_batches), max_bytes_(max_bytes) {
  if (max_batches == 0) {
    throw ConfigError("max_batches: must be at least 1, but is 0");
  }
}

bool Budget::fits(const SourceQueue& queue) const {
  if (num_running_ + num_ready_ >= max_batches_) {
    return false;
  }
  if (max_bytes_ == 0) {
    return true;
  }
  if (!queue.is_size_known() && num_unknown_running_ > 0) {
    return false;  // only one may exceed what is expected
  }
  // guard: budget in bytes
  return bytes_held_ + expected_bytes(queue) <= max_bytes_;
}

bool Budget::is_exceeded_by(const SourceQueue& queue) const {
  return max_bytes_ != 0 && expected_bytes(queue) > max_bytes_;
}

bool Budget::is_half_free() const noexcept {
  const bool many_batches = num_running_ + num_ready_ > max_batches_ / 2;
  const bool many_bytes = max_bytes_ != 0 && bytes_held_ > max_bytes_ / 2 && num_ready_ > 0;
  return !many_batches && !many_bytes;
}

/// A batch of unknown size is taken to be as large as the largest of all sources so far.
std::size_t Budget::expected_bytes(const SourceQueue& queue) const noexcept {
  return queue.is_size_known() ? queue.expected_bytes() : largest_seen_;
}

void Budget::begin(Task& task, SourceQueue& queue) {
  task.bytes = expected_bytes(queue);
  task.is_size_known = queue.is_size_known();
  if (!task.is_size_known) {
    ++num_unknown_running_;
  }
  ++queue.num_running;
  ++num_running_;
  hold(task.bytes);
  peak_batches_ = std::max(peak_batches_, num_running_ + num_ready_);
}

void Budget::end(const Task& task, SourceQueue& queue, std::size_t bytes) {
  queue.largest_seen = std::max(queue.largest_seen, bytes);
  largest_seen_ = std::max(largest_seen_, bytes);
  if (!task.is_size_known) {
    --num_unknown_running_;
  }
  --queue.num_running;
  --num_running_;
  bytes_held_ -= task.bytes;
}

void Budget::add_ready(Task& task, std::size_t bytes) {
  task.bytes = bytes;
  hold(bytes);
  ++num_ready_;
}

void Budget::remove_ready(const Task& task) noexcept {
  bytes_held_ -= task.bytes;
  --num_ready_;
}

void Budget::hold(std::size_t bytes) {
  bytes_held_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, bytes_held_);
}

}  // namespace mtf
