#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>

#include "mtf/prefetch/worker_pool.hpp"

namespace {

using namespace std::chrono_literals;

TEST(WorkerPool, RunsTheBodyOncePerThreadAndJoins) {
  mtf::WorkerPool pool;
  std::atomic<int> num_runs{0};
  pool.start(4, [&] { ++num_runs; });
  EXPECT_TRUE(pool.join_for(20s));
  EXPECT_EQ(num_runs.load(), 4);
  EXPECT_TRUE(pool.join_for(0ns)) << "nobody is left";
  EXPECT_FALSE(pool.is_own_thread());
}

TEST(WorkerPool, BlocksSignalsInItsThreadsOnly) {
  mtf::WorkerPool pool;
  std::atomic<bool> blocked{false};
  pool.start(1, [&] {
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    blocked = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGCHLD) == 1;
  });
  EXPECT_TRUE(pool.join_for(20s));
  EXPECT_TRUE(blocked.load());
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGINT), 0);
}

TEST(WorkerPool, SaysWhenAThreadHasNotEnded) {
  mtf::WorkerPool pool;
  std::atomic<bool> hold{true};
  pool.start(1, [&] {
    while (hold) {
      std::this_thread::sleep_for(1ms);
    }
  });
  EXPECT_FALSE(pool.join_for(5ms));
  hold = false;
  EXPECT_TRUE(pool.join_for(20s));
}

}  // namespace
