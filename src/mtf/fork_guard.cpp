#include "mtf/fork_guard.hpp"

#include <pthread.h>

#include <atomic>

namespace mtf {

namespace {

std::atomic<std::uint64_t> generation{0};

const int kRegistered = pthread_atfork(nullptr, nullptr, [] { generation.fetch_add(1, std::memory_order_relaxed); });

}  // namespace

std::uint64_t ForkGuard::current() noexcept {
  static_cast<void>(kRegistered);
  return generation.load(std::memory_order_relaxed);
}

}  // namespace mtf
