#include "mtf/prefetch/task_queue.hpp"

#include <algorithm>
#include <utility>

namespace mtf {

Task* TaskSlab::acquire() {
  if (unused_.empty()) {
    if (unused_.capacity() <= tasks_.size()) {
      unused_.reserve(2 * tasks_.size() + 64);
    }
    tasks_.emplace_back();
    return &tasks_.back();
  }
  Task* task = unused_.back();
  unused_.pop_back();
  return task;
}

void TaskSlab::recycle(Task* task) noexcept {
  task->payload = nullptr;
  task->error = nullptr;
  task->bytes = 0;
  task->dropped = false;
  task->awaited = false;
  task->state.store(TaskState::queued, std::memory_order_relaxed);
  unused_.push_back(task);  // never allocates: its capacity is at least the slab's size
}

void RequestOrder::append(Task* task) noexcept {
  task->previous = last_;
  task->next = nullptr;
  (last_ != nullptr ? last_->next : first_) = task;
  last_ = task;
  ++size_;
}

void RequestOrder::remove(Task* task) noexcept {
  (task->previous != nullptr ? task->previous->next : first_) = task->next;
  (task->next != nullptr ? task->next->previous : last_) = task->previous;
  --size_;
}

SourceQueue::SourceQueue(std::shared_ptr<NativeSource> given) : source(std::move(given)) {
  max_batch_bytes = source->max_batch_bytes();
}

std::size_t SourceQueue::expected_bytes() const noexcept { return std::max(max_batch_bytes, largest_seen); }

double SourceQueue::expected_fetch_s() const noexcept {
  if (stats.num_fetched == 0) {
    return source->may_block() ? 1.0 : 0.0;
  }
  return stats.fetch_s / static_cast<double>(stats.num_fetched);
}

}  // namespace mtf
