#include "mtf/prefetch/worker_pool.hpp"

#include <pthread.h>
#include <signal.h>

namespace mtf {

namespace {

/// A new thread inherits the mask of the thread that makes it: all signals stay blocked while this lives.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

/// The roll of the pool that this thread belongs to.
thread_local const void* own_roll = nullptr;

}  // namespace

WorkerPool::~WorkerPool() {
  for (std::thread& thread : threads_) {
    thread.detach();
  }
}

void WorkerPool::start(std::size_t num_threads, const std::function<void()>& body) {
  const SignalsBlocked blocked;
  threads_.reserve(threads_.size() + num_threads);
  for (std::size_t k = 0; k < num_threads; ++k) {
    {
      const std::lock_guard lock(roll_->mutex);
      ++roll_->num_running;
    }
    // Leaving the roll in a destructor also covers a thread that Python ends at interpreter exit by unwinding it.
    struct Leave {
      std::shared_ptr<Roll> roll;
      ~Leave() {
        const std::lock_guard lock(roll->mutex);
        --roll->num_running;
        roll->one_ended.notify_all();
      }
    };
    try {
      threads_.emplace_back([roll = roll_, body] {
        const Leave leave{roll};
        own_roll = roll.get();
        body();
      });
    } catch (...) {
      const std::lock_guard lock(roll_->mutex);
      --roll_->num_running;
      throw;
    }
  }
}

bool WorkerPool::join_for(std::chrono::nanoseconds max_wait) {
  {
    std::unique_lock lock(roll_->mutex);
    if (!roll_->one_ended.wait_for(lock, max_wait, [&] { return roll_->num_running == 0; })) {
      return false;
    }
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
  return true;
}

bool WorkerPool::is_own_thread() const noexcept { return own_roll == roll_.get(); }

}  // namespace mtf
