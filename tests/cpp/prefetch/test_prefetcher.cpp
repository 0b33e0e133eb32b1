#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/prefetch/prefetcher.hpp"
#include "mtf/random/key.hpp"

namespace {

using namespace std::chrono_literals;
using mtf::Payload;
using mtf::Prefetcher;
using mtf::PrefetchOptions;

constexpr auto kLong = 20s;  // a test that waits this long has failed

std::atomic<int> num_payloads{0};

struct Numbers : Payload {
  Numbers(std::uint64_t p, std::uint64_t b, std::size_t size) : pass(p), batch(b), bytes(size) { ++num_payloads; }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;
  ~Numbers() override { --num_payloads; }
  [[nodiscard]] std::size_t num_bytes() const noexcept override { return bytes; }
  std::uint64_t pass, batch;
  std::size_t bytes;
};

/// A source that runs a function before each fetch, and notes how many fetches run at once.
class TestSource : public mtf::NativeSource {
 public:
  struct Traits {
    std::size_t bytes = 100;
    std::size_t announced_bytes = 100;
    bool concurrent = true;
    bool blocking = false;
  };

  TestSource() : TestSource(Traits{}) {}
  explicit TestSource(Traits traits, std::function<void(std::uint64_t, std::uint64_t)> before = {})
      : traits_(traits), before_(std::move(before)) {}

  std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) override {
    const int now = ++running;
    int most = most_running.load();
    while (now > most && !most_running.compare_exchange_weak(most, now)) {
    }
    {
      const std::lock_guard lock(mutex_);
      fetched.emplace_back(pass, batch);
    }
    struct Leave {
      std::atomic<int>& count;
      ~Leave() { --count; }
    } const leave{running};
    if (before_) {
      before_(pass, batch);
    }
    return std::make_unique<Numbers>(pass, batch, traits_.bytes);
  }
  std::size_t max_batch_bytes() const noexcept override { return traits_.announced_bytes; }
  bool is_concurrent() const noexcept override { return traits_.concurrent; }
  bool may_block() const noexcept override { return traits_.blocking; }

  std::size_t num_fetched() {
    const std::lock_guard lock(mutex_);
    return fetched.size();
  }

  std::atomic<int> running{0};
  std::atomic<int> most_running{0};
  std::vector<std::pair<std::uint64_t, std::uint64_t>> fetched;

 private:
  Traits traits_;
  std::function<void(std::uint64_t, std::uint64_t)> before_;
  std::mutex mutex_;
};

using Draws = std::vector<std::pair<int, std::int64_t>>;  // source, batch

void request(Prefetcher& prefetcher, const Draws& draws, std::int64_t pass = 0) {
  std::vector<std::int32_t> sources;
  std::vector<std::int64_t> passes, batches;
  for (const auto& [source, batch] : draws) {
    sources.push_back(source);
    passes.push_back(pass);
    batches.push_back(batch);
  }
  prefetcher.request(sources, passes, batches);
}

std::uint64_t take(Prefetcher& prefetcher, std::size_t source) {
  const auto payload = prefetcher.take(source, kLong);
  if (payload == nullptr) {
    throw std::runtime_error("nothing came");
  }
  return static_cast<const Numbers&>(*payload).batch;
}

void wait_until(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + kLong;
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) {
      throw std::runtime_error("it never happened");
    }
    std::this_thread::sleep_for(1ms);
  }
}

struct NotAnException {
  int number;
};

class PrefetcherTest : public testing::TestWithParam<std::size_t> {
 protected:
  void TearDown() override { EXPECT_EQ(num_payloads.load(), 0) << "payloads leaked"; }
};

class WithThreads : public PrefetcherTest {};
INSTANTIATE_TEST_SUITE_P(Threads, WithThreads, testing::Values(0, 1, 2, 5));

TEST_P(WithThreads, GivesEachSourceItsBatchesInOrder) {
  std::vector<std::shared_ptr<mtf::NativeSource>> sources;
  for (int k = 0; k < 4; ++k) {
    sources.push_back(std::make_shared<TestSource>());
  }
  Prefetcher prefetcher(sources, {.num_threads = GetParam(), .max_batches = 5});
  mtf::Stream random(mtf::Key{GetParam()});
  std::vector<std::int64_t> next(4, 0);
  std::deque<std::pair<int, std::int64_t>> due;
  for (int round = 0; round < 100; ++round) {
    Draws draws;
    for (int k = 0; k < 64; ++k) {
      const int source = static_cast<int>(random.bounded(4));
      draws.emplace_back(source, next[static_cast<std::size_t>(source)]++);
    }
    request(prefetcher, draws);
    due.insert(due.end(), draws.begin(), draws.end());
    for (std::uint64_t count = random.bounded(100); count > 0 && !due.empty(); --count) {
      const auto [source, batch] = due.front();
      due.pop_front();
      ASSERT_EQ(take(prefetcher, static_cast<std::size_t>(source)), static_cast<std::uint64_t>(batch));
    }
  }
  EXPECT_LE(prefetcher.stats().peak_batches_held, 6U);
}

TEST_P(WithThreads, EditsLoseNothingThatWasFetched) {
  // The consumer may take in any order: what it waits for is fetched even if the budget is spent on others.
  std::vector<std::shared_ptr<TestSource>> sources;
  for (int k = 0; k < 3; ++k) {
    sources.push_back(std::make_shared<TestSource>());
  }
  Prefetcher prefetcher({sources.begin(), sources.end()}, {.num_threads = GetParam(), .max_batches = 2});
  request(prefetcher, {{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {2, 0}});
  EXPECT_EQ(take(prefetcher, 2), 0U);
  EXPECT_EQ(take(prefetcher, 1), 0U);
  EXPECT_EQ(take(prefetcher, 1), 1U);
  EXPECT_EQ(take(prefetcher, 0), 0U);
  EXPECT_EQ(take(prefetcher, 0), 1U);
  EXPECT_EQ(take(prefetcher, 0), 2U);
  for (const auto& source : sources) {
    std::map<std::pair<std::uint64_t, std::uint64_t>, int> times;
    for (const auto& address : source->fetched) {
      EXPECT_EQ(++times[address], 1) << "fetched twice";
    }
  }
}

TEST_P(WithThreads, KeepsEveryKindOfExceptionAtItsStep) {
  const auto source = std::make_shared<TestSource>(TestSource::Traits{}, [](std::uint64_t, std::uint64_t batch) {
    if (batch == 2) {
      throw std::runtime_error("two");
    }
    if (batch == 4) {
      throw NotAnException{4};
    }
    if (batch == 5) {
      throw 5;
    }
  });
  Prefetcher prefetcher({source}, {.num_threads = GetParam(), .max_batches = 8});
  request(prefetcher, {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 4}, {0, 5}, {0, 6}});
  EXPECT_EQ(take(prefetcher, 0), 0U);
  EXPECT_EQ(take(prefetcher, 0), 1U);
  EXPECT_THROW(take(prefetcher, 0), std::runtime_error);
  EXPECT_EQ(take(prefetcher, 0), 3U);
  try {
    take(prefetcher, 0);
    FAIL();
  } catch (const NotAnException& thrown) {
    EXPECT_EQ(thrown.number, 4);
  }
  EXPECT_THROW(take(prefetcher, 0), int);
  EXPECT_EQ(take(prefetcher, 0), 6U);
}

TEST_P(WithThreads, ServesASerialSourceOneAtATimeInItsOrder) {
  const auto serial = std::make_shared<TestSource>(TestSource::Traits{.concurrent = false, .blocking = true},
                                                   [](auto, auto) { std::this_thread::sleep_for(200us); });
  const auto other = std::make_shared<TestSource>();
  Prefetcher prefetcher({serial, other}, {.num_threads = GetParam(), .max_batches = 10});
  Draws draws;
  for (int k = 0; k < 60; ++k) {
    draws.emplace_back(0, k);
    draws.emplace_back(1, k);
  }
  request(prefetcher, draws);
  for (const auto& [source, batch] : draws) {
    ASSERT_EQ(take(prefetcher, static_cast<std::size_t>(source)), static_cast<std::uint64_t>(batch));
  }
  EXPECT_EQ(serial->most_running.load(), 1);
  for (std::size_t k = 0; k < serial->fetched.size(); ++k) {
    EXPECT_EQ(serial->fetched[k].second, k);
  }
}

TEST_P(WithThreads, HoldsAtMostTheBudgetAndOneBatch) {
  constexpr std::size_t kBudget = 1000;
  std::vector<std::shared_ptr<mtf::NativeSource>> sources;
  std::size_t largest = 0;
  for (std::size_t k = 0; k < 64; ++k) {
    const std::size_t bytes = 10 + 7 * k;  // half of them announce their size
    largest = std::max(largest, bytes);
    sources.push_back(std::make_shared<TestSource>(
        TestSource::Traits{.bytes = bytes, .announced_bytes = k % 2 == 0 ? bytes : 0, .blocking = k % 3 == 0}));
  }
  Prefetcher prefetcher(sources, {.num_threads = GetParam(), .max_batches = 100, .max_bytes = kBudget});
  mtf::Stream random(mtf::Key{7});
  std::vector<std::int64_t> next(64, 0);
  for (std::size_t k = 0; k < 64; ++k) {  // sizes that nobody announced are known after one batch
    request(prefetcher, {{static_cast<int>(k), next[k]++}});
    take(prefetcher, k);
  }
  for (int round = 0; round < 20; ++round) {
    Draws draws;
    for (int k = 0; k < 100; ++k) {
      const std::size_t source = random.bounded(64);
      draws.emplace_back(static_cast<int>(source), next[source]++);
    }
    request(prefetcher, draws);
    for (const auto& [source, batch] : draws) {
      ASSERT_EQ(take(prefetcher, static_cast<std::size_t>(source)), static_cast<std::uint64_t>(batch));
      ASSERT_LE(prefetcher.stats().peak_bytes_held, kBudget + largest);
    }
  }
  EXPECT_EQ(prefetcher.stats().bytes_held, 0U);
  if (GetParam() > 0) {
    EXPECT_GT(prefetcher.stats().peak_bytes_held, largest);
  }
}

TEST_P(WithThreads, FetchesABatchBeyondTheBudgetOnlyWhenItIsAskedFor) {
  const auto huge = std::make_shared<TestSource>(TestSource::Traits{.bytes = 500, .announced_bytes = 500});
  const auto small = std::make_shared<TestSource>(TestSource::Traits{.bytes = 10, .announced_bytes = 10});
  Prefetcher prefetcher({huge, small}, {.num_threads = GetParam(), .max_batches = 100, .max_bytes = 100});
  request(prefetcher, {{0, 0}, {1, 0}, {1, 1}, {1, 2}});
  if (GetParam() > 0) {
    wait_until([&] { return small->num_fetched() == 3; });
  }
  EXPECT_EQ(huge->num_fetched(), 0U);
  EXPECT_EQ(take(prefetcher, 0), 0U);
  EXPECT_EQ(take(prefetcher, 1), 0U);
  EXPECT_LE(prefetcher.stats().peak_bytes_held, 100U + 500U);
}

// The consumer doesn't fetch from a source that may block, so a thread has to, whatever the budget says.
TEST_P(WithThreads, FetchesABlockingBatchBeyondTheBudgetWhenItIsAskedFor) {
  const auto huge =
      std::make_shared<TestSource>(TestSource::Traits{.bytes = 500, .announced_bytes = 500, .blocking = true});
  Prefetcher prefetcher({huge}, {.num_threads = GetParam(), .max_batches = 100, .max_bytes = 100});
  request(prefetcher, {{0, 0}, {0, 1}});
  for (std::uint64_t k = 0; k < 2; ++k) {
    const auto payload = prefetcher.take(0, 5s);
    ASSERT_NE(payload, nullptr) << "nobody fetched batch " << k;
    EXPECT_EQ(static_cast<const Numbers&>(*payload).batch, k);
  }
}

TEST_P(WithThreads, ForgetsWhatIsDiscarded) {
  std::atomic<bool> hold{true};
  const auto slow = std::make_shared<TestSource>(TestSource::Traits{.blocking = true}, [&](auto, std::uint64_t batch) {
    while (batch == 1 && hold) {
      std::this_thread::sleep_for(1ms);
    }
  });
  const auto other = std::make_shared<TestSource>();
  Prefetcher prefetcher({slow, other}, {.num_threads = GetParam(), .max_batches = 3});
  request(prefetcher, {{0, 0}, {0, 1}, {0, 2}, {1, 0}, {0, 3}});
  EXPECT_EQ(take(prefetcher, 0), 0U);
  if (GetParam() > 0) {
    wait_until([&] { return slow->num_fetched() >= 2; });  // one is under way
  }
  EXPECT_EQ(prefetcher.discard(0), 3U);
  EXPECT_THROW(take(prefetcher, 0), mtf::ConfigError);
  request(prefetcher, {{0, 7}});
  hold = false;
  EXPECT_EQ(take(prefetcher, 0), 7U);
  EXPECT_EQ(take(prefetcher, 1), 0U);
  request(prefetcher, {{0, 8}, {1, 1}});
  prefetcher.reset();
  EXPECT_THROW(take(prefetcher, 1), mtf::ConfigError);
  wait_until([&] { return prefetcher.stats().num_running == 0; });
  EXPECT_EQ(prefetcher.stats().bytes_held, 0U);
  EXPECT_EQ(prefetcher.stats().num_ready, 0U);
}

TEST_P(WithThreads, RefusesWhatItCannotServe) {
  const auto source = std::make_shared<TestSource>();
  Prefetcher prefetcher({source}, {.num_threads = GetParam(), .max_batches = 3});
  EXPECT_THROW(request(prefetcher, {{0, 0}, {1, 0}}), mtf::ConfigError);
  EXPECT_THROW(request(prefetcher, {{0, 0}, {-1, 0}}), mtf::ConfigError);
  EXPECT_THROW(request(prefetcher, {{0, -1}}), mtf::ConfigError);
  EXPECT_EQ(prefetcher.stats().num_queued, 0U) << "a refused request appends nothing";
  EXPECT_THROW(take(prefetcher, 0), mtf::ConfigError);
  EXPECT_THROW(take(prefetcher, 1), mtf::ConfigError);
  EXPECT_THROW(prefetcher.discard(1), mtf::ConfigError);
  EXPECT_THROW(prefetcher.add_source(nullptr), mtf::ConfigError);
  EXPECT_EQ(prefetcher.add_source(std::make_shared<TestSource>()), 1U);
  request(prefetcher, {{1, 5}});
  EXPECT_EQ(take(prefetcher, 1), 5U);
  EXPECT_THROW(Prefetcher({source}, {.num_threads = GetParam(), .max_batches = 0}), mtf::ConfigError);
}

TEST_P(WithThreads, ClosesAtAnyTimeAndMoreThanOnce) {
  const auto source = std::make_shared<TestSource>();
  Prefetcher prefetcher({source}, {.num_threads = GetParam(), .max_batches = 3});
  request(prefetcher, {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 4}});
  EXPECT_EQ(take(prefetcher, 0), 0U);
  EXPECT_TRUE(prefetcher.close());
  EXPECT_TRUE(prefetcher.close());
  EXPECT_THROW(take(prefetcher, 0), mtf::Closed);
  EXPECT_THROW(request(prefetcher, {{0, 9}}), mtf::Closed);
  EXPECT_THROW(prefetcher.discard(0), mtf::Closed);
  EXPECT_THROW(prefetcher.reset(), mtf::Closed);
  EXPECT_THROW(prefetcher.add_source(source), mtf::Closed);
  EXPECT_EQ(prefetcher.stats().num_taken, 1U);
}

TEST_P(WithThreads, IsClosedBySeveralThreadsAtOnce) {
  for (int round = 0; round < 20; ++round) {
    Prefetcher prefetcher({std::make_shared<TestSource>()}, {.num_threads = GetParam()});
    request(prefetcher, {{0, 0}, {0, 1}});
    std::vector<std::thread> closers;
    for (int k = 0; k < 3; ++k) {
      closers.emplace_back([&] { EXPECT_TRUE(prefetcher.close(kLong)); });
    }
    for (std::thread& closer : closers) {
      closer.join();
    }
  }
}

TEST_F(PrefetcherTest, WakesAConsumerThatWaitsWhenItIsClosed) {
  std::atomic<bool> hold{true};
  const auto source = std::make_shared<TestSource>(TestSource::Traits{.blocking = true}, [&](auto, auto) {
    while (hold) {
      std::this_thread::sleep_for(1ms);
    }
  });
  Prefetcher prefetcher({source}, {.num_threads = 2, .max_batches = 3});
  request(prefetcher, {{0, 0}, {0, 1}, {0, 2}});
  std::atomic<bool> woken{false};
  std::thread consumer([&] {
    EXPECT_THROW(take(prefetcher, 0), mtf::Closed);
    woken = true;
  });
  wait_until([&] { return source->running == 2; });
  EXPECT_FALSE(prefetcher.close(5ms)) << "two fetches are still under way";
  wait_until([&] { return woken.load(); });
  consumer.join();
  hold = false;
  EXPECT_TRUE(prefetcher.close());
}

TEST_F(PrefetcherTest, LeavesAThreadBehindThatNeverEnds) {
  const auto hold = std::make_shared<std::atomic<bool>>(true);
  const auto ended = std::make_shared<std::atomic<bool>>(false);
  {
    const auto source = std::make_shared<TestSource>(TestSource::Traits{.blocking = true}, [=](auto, auto) {
      while (*hold) {
        std::this_thread::sleep_for(1ms);
      }
      *ended = true;
    });
    Prefetcher prefetcher({source}, {.num_threads = 1, .max_batches = 3});
    request(prefetcher, {{0, 0}});
    wait_until([&] { return source->running == 1; });
    EXPECT_FALSE(prefetcher.close(1ms));
  }  // the prefetcher is gone, its thread uses what it keeps
  *hold = false;
  wait_until([&] { return ended->load() && num_payloads == 0; });
  std::this_thread::sleep_for(20ms);  // lets it leave, for the leak checker
}

TEST_F(PrefetcherTest, GivesUpWaitingInTimeAndGoesOn) {
  std::atomic<bool> hold{true};
  const auto source = std::make_shared<TestSource>(TestSource::Traits{.blocking = true}, [&](auto, auto) {
    while (hold) {
      std::this_thread::sleep_for(1ms);
    }
  });
  Prefetcher prefetcher({source}, {.num_threads = 1, .max_batches = 3});
  request(prefetcher, {{0, 0}});
  EXPECT_EQ(prefetcher.take_ready(0), nullptr);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(prefetcher.take(0, 10ms), nullptr);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 10ms);
  EXPECT_GE(prefetcher.stats().wait_s, 0.01);
  hold = false;
  EXPECT_EQ(take(prefetcher, 0), 0U);
}

TEST_F(PrefetcherTest, FetchesSlowBatchesSideBySide) {
  // Each group of eight ends only once all of it has begun.
  std::array<std::atomic<int>, 10> num_begun{};
  const auto source =
      std::make_shared<TestSource>(TestSource::Traits{.blocking = true}, [&](auto, std::uint64_t batch) {
        ++num_begun[batch / 8];
        wait_until([&] { return num_begun[batch / 8] == 8; });
      });
  Prefetcher prefetcher({source}, {.num_threads = 8, .max_batches = 16});
  Draws draws;
  for (int k = 0; k < 80; ++k) {
    draws.emplace_back(0, k);
  }
  request(prefetcher, draws);
  for (std::uint64_t k = 0; k < 80; ++k) {
    ASSERT_EQ(take(prefetcher, 0), k);
  }
  EXPECT_EQ(source->most_running.load(), 8);
}

TEST_F(PrefetcherTest, HandsSmallBatchesOverWithoutAWakeUpEach) {
  const auto source = std::make_shared<TestSource>();
  Prefetcher prefetcher({source}, {.num_threads = 1, .max_batches = 32});
  Draws draws;
  for (int k = 0; k < 2000; ++k) {
    draws.emplace_back(0, k);
  }
  request(prefetcher, draws);
  for (std::uint64_t k = 0; k < 2000; ++k) {
    ASSERT_EQ(take(prefetcher, 0), k);
    for (const auto until = std::chrono::steady_clock::now() + 20us; std::chrono::steady_clock::now() < until;) {
    }
  }
  EXPECT_LT(prefetcher.stats().num_wakeups, 400U);
}

TEST_F(PrefetcherTest, IsInertInAForkedChild) {
  const auto source =
      std::make_shared<TestSource>(TestSource::Traits{}, [](auto, auto) { std::this_thread::sleep_for(100us); });
  auto prefetcher = std::make_unique<Prefetcher>(std::vector<std::shared_ptr<mtf::NativeSource>>{source},
                                                 PrefetchOptions{.num_threads = 2, .max_batches = 4});
  Draws draws;
  for (int k = 0; k < 2000; ++k) {
    draws.emplace_back(0, k);
  }
  request(*prefetcher, draws);
  for (std::uint64_t k = 0; k < 30; ++k) {
    ASSERT_EQ(take(*prefetcher, 0), k);
    const pid_t child = fork();
    if (child == 0) {
      int num_refusals = 0;
      for (const auto& call : std::vector<std::function<void()>>{
               [&] { take(*prefetcher, 0); }, [&] { request(*prefetcher, {{0, 0}}); }, [&] { prefetcher->reset(); },
               [&] { prefetcher->discard(0); }, [&] { static_cast<void>(prefetcher->stats()); }}) {
        try {
          call();
        } catch (const mtf::Closed&) {
          ++num_refusals;
        }
      }
      const bool closes = prefetcher->close();
      prefetcher.reset();
      _exit(closes ? num_refusals : 99);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 5);
  }
}

/// Everything at once, under the sanitizers: slow and fast sides, throwing tasks, edits, statistics and a close from
/// afar.
TEST_P(WithThreads, SurvivesEverythingAtOnce) {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    std::vector<std::shared_ptr<mtf::NativeSource>> sources;
    for (std::uint64_t k = 0; k < 5; ++k) {
      sources.push_back(std::make_shared<TestSource>(
          TestSource::Traits{
              .announced_bytes = k % 2 == 0 ? std::size_t{100} : 0, .concurrent = k != 3, .blocking = k == 4},
          [k, seed](std::uint64_t pass, std::uint64_t batch) {
            mtf::Stream random(mtf::fold_in(mtf::fold_in(mtf::Key{seed}, pass), batch * 8 + k));
            switch (random.bounded(12)) {
              case 0:
                throw std::runtime_error("unlucky");
              case 1:
                throw NotAnException{1};
              case 2:
                std::this_thread::sleep_for(std::chrono::microseconds(random.bounded(300)));
                break;
              case 3:
                std::this_thread::yield();
                break;
              default:
                break;
            }
          }));
    }
    Prefetcher prefetcher(sources,
                          {.num_threads = GetParam(), .max_batches = 1 + seed % 7, .max_bytes = seed % 3 * 250});
    std::atomic<bool> done{false};
    std::thread onlooker([&] {
      mtf::Stream random(mtf::Key{seed + 1000});
      while (!done) {
        static_cast<void>(prefetcher.stats());
        if (seed % 5 == 4 && random.bounded(200) == 0) {
          prefetcher.close(0ns);
        }
        std::this_thread::sleep_for(20us);
      }
    });
    mtf::Stream random(mtf::Key{seed});
    std::vector<std::deque<std::int64_t>> due(5);
    std::int64_t next = 0;
    try {
      for (int step = 0; step < 150; ++step) {
        const std::size_t source = random.bounded(5);
        switch (random.bounded(8)) {
          case 0: {
            Draws draws;
            for (std::uint64_t k = random.bounded(20); k > 0; --k) {
              const std::size_t to = random.bounded(5);
              due[to].push_back(next);
              draws.emplace_back(static_cast<int>(to), next++);
            }
            request(prefetcher, draws);
            break;
          }
          case 1:
            if (random.bounded(8) == 0) {
              ASSERT_EQ(prefetcher.discard(source), due[source].size());
              due[source].clear();
            }
            break;
          case 2:
            if (random.bounded(30) == 0) {
              prefetcher.reset();
              for (auto& batches : due) {
                batches.clear();
              }
            }
            break;
          case 3:
            std::this_thread::sleep_for(std::chrono::microseconds(random.bounded(100)));
            break;
          default:
            if (due[source].empty()) {
              break;
            }
            const auto expected = static_cast<std::uint64_t>(due[source].front());
            due[source].pop_front();
            try {
              ASSERT_EQ(take(prefetcher, source), expected);
            } catch (const mtf::Closed&) {
              throw;
            } catch (const std::runtime_error& error) {
              ASSERT_STREQ(error.what(), "unlucky");
            } catch (const NotAnException&) {
            }
        }
      }
    } catch (const mtf::Closed&) {
      EXPECT_EQ(seed % 5, 4U);
    }
    done = true;
    onlooker.join();
  }
}

}  // namespace
