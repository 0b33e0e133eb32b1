#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "mtf/gather/buffer_pool.hpp"
#include "mtf/random/key.hpp"

namespace {

using mtf::Buffer;
using mtf::BufferPool;

TEST(BufferPool, GivesAlignedMemoryOfEverySize) {
  const auto pool = BufferPool::create();
  std::vector<Buffer> held;
  for (std::size_t size = 0; size < 5000; size += 1 + size / 50) {
    held.push_back(pool->acquire(size));
    ASSERT_EQ(held.back().num_bytes(), size);
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(held.back().data()) % BufferPool::kAlignment, 0U);
    std::memset(held.back().data(), static_cast<int>(size), size);  // the sanitizer finds one that is too small
  }
  EXPECT_EQ(pool->stats().num_reused, 0U);
  EXPECT_THROW(static_cast<void>(pool->acquire(SIZE_MAX)), std::bad_alloc);
}

TEST(BufferPool, TakesBackWhatDied) {
  const auto pool = BufferPool::create();
  Buffer first = pool->acquire(1000);
  std::byte* const address = first.data();
  const std::size_t rounded = pool->stats().live_bytes;
  EXPECT_GE(rounded, 1000U);
  EXPECT_LE(rounded, 1250U);
  first = Buffer();
  EXPECT_EQ(pool->stats(), (BufferPool::Stats{.num_allocated = 1, .idle_bytes = rounded}));
  const Buffer second = pool->acquire(990);  // the same class
  EXPECT_EQ(second.data(), address);
  EXPECT_EQ(pool->stats(), (BufferPool::Stats{.num_allocated = 1, .num_reused = 1, .live_bytes = rounded}));
}

TEST(BufferPool, MovesOwnership) {
  const auto pool = BufferPool::create();
  Buffer a = pool->acquire(100);
  std::byte* const address = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), address);
  Buffer c = pool->acquire(100);
  c = std::move(b);
  EXPECT_EQ(c.data(), address);
  EXPECT_GT(pool->stats().idle_bytes, 0U) << "what was overwritten went back";
  Buffer& same = c;
  c = std::move(same);
  EXPECT_EQ(c.data(), address);
}

TEST(BufferPool, KeepsNoMoreThanItsLimitButTwoOfASize) {
  const auto pool = BufferPool::create(1 << 12);
  std::vector<Buffer> small(100);
  for (Buffer& buffer : small) {
    buffer = pool->acquire(64);
  }
  small.clear();
  EXPECT_EQ(pool->stats().idle_bytes, 1U << 12);
  const auto other = BufferPool::create(1 << 12);
  std::vector<Buffer> large(5);
  for (Buffer& buffer : large) {
    buffer = other->acquire(1 << 20);
  }
  large.clear();
  EXPECT_EQ(other->stats().idle_bytes, 2U << 20);
}

// That it releases what it took is seen by the leak checker of the sanitizers.
TEST(BufferPool, LivesAsLongAsItsLastBuffer) {
  auto pool = BufferPool::create();
  const std::weak_ptr<BufferPool> alive = pool;
  Buffer last = pool->acquire(10);
  {
    const Buffer idle = pool->acquire(5000);
  }
  pool.reset();
  EXPECT_FALSE(alive.expired());
  last = Buffer();
  EXPECT_TRUE(alive.expired());
}

TEST(BufferPool, SaysThatThereIsNoMemory) {
  const auto pool = BufferPool::create();
  for (const std::size_t num_bytes : {(std::size_t{1} << 62) + 1, ~std::size_t{0}}) {
    EXPECT_THROW(static_cast<void>(pool->acquire(num_bytes)), std::bad_alloc);
  }
  EXPECT_EQ(pool->stats(), BufferPool::Stats{});
}

TEST(BufferPool, ServesManyThreads) {
  const auto pool = BufferPool::create();
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      mtf::Stream random(mtf::Key{t});
      std::vector<Buffer> held(8);
      for (int k = 0; k < 2000; ++k) {
        Buffer& buffer = held[random.bounded(8)];
        buffer = pool->acquire(random.bounded(3000));
        std::memset(buffer.data(), static_cast<int>(t), buffer.num_bytes());
        for (std::size_t i = 0; i < buffer.num_bytes(); ++i) {
          ASSERT_EQ(buffer.data()[i], static_cast<std::byte>(t));
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(pool->stats().live_bytes, 0U);
}

TEST(BufferPool, GivesAndTakesMemoryInAForkedChild) {
  const auto pool = BufferPool::create();
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) {
      static_cast<void>(pool->acquire(100));
    }
  });
  for (int k = 0; k < 20; ++k) {
    Buffer from_parent = pool->acquire(200);
    const pid_t child = fork();
    if (child == 0) {
      from_parent = Buffer();  // the other thread may hold the lock for ever
      const Buffer own = pool->acquire(300);
      std::memset(own.data(), 1, 300);
      _exit(pool->stats() == BufferPool::Stats{} ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  stop = true;
  busy.join();
}

}  // namespace
