#include <gtest/gtest.h>

#include <limits>
#include <new>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/gather/array_source.hpp"

namespace {

using mtf::ArrayBatch;
using mtf::ArraySource;

/// An array of the numbers 0, 1, 2 ... as rows of one item.
struct Column {
  explicit Column(std::size_t num_rows) : values(num_rows) { std::iota(values.begin(), values.end(), 0); }

  [[nodiscard]] mtf::ArrayView view() const {
    const std::uint64_t shape[] = {values.size()};
    const std::ptrdiff_t strides[] = {8};
    return mtf::view_of(reinterpret_cast<const std::byte*>(values.data()), shape, strides, 8);
  }

  std::vector<std::int64_t> values;
};

std::vector<std::int64_t> numbers(const mtf::Payload& payload, std::size_t array) {
  const auto& batch = static_cast<const ArrayBatch&>(payload);
  const auto* begin = reinterpret_cast<const std::int64_t*>(batch.buffers[array].data());
  return {begin, begin + batch.num_rows};
}

TEST(ArraySource, GivesTheSamplersRowsOfEachArray) {
  const Column a(1003), b(1003);
  for (const bool shuffle : {false, true}) {
    for (const bool drop_last : {false, true}) {
      for (const std::uint64_t batch_size : {1, 7, 600, 2000}) {
        const mtf::SamplerSpec spec{.num_samples = 1003,
                                    .batch_size = batch_size,
                                    .shuffle = shuffle,
                                    .drop_last = drop_last,
                                    .key = mtf::Key{5}};
        const mtf::Sampler sampler(spec);
        ArraySource source({a.view(), b.view()}, spec, mtf::BufferPool::create());
        ASSERT_EQ(source.num_batches(), sampler.num_batches());
        for (std::uint64_t batch = 0; batch < sampler.num_batches(); batch += 1 + batch / 3) {
          std::vector<std::int64_t> rows(sampler.part(batch).size());
          sampler.fill(2, batch, rows);
          const auto payload = source.fetch(2, batch);
          ASSERT_EQ(numbers(*payload, 0), rows);
          ASSERT_EQ(numbers(*payload, 1), rows);
          ASSERT_LE(payload->num_bytes(), source.max_batch_bytes());
        }
        EXPECT_THROW(static_cast<void>(source.fetch(0, sampler.num_batches())), std::out_of_range);
      }
    }
  }
}

TEST(ArraySource, GivesARankWithoutRowsTheFirstRowOfTheBatch) {
  const Column column(10);
  for (const bool shuffle : {false, true}) {
    for (std::uint32_t rank = 0; rank < 4; ++rank) {
      const mtf::SamplerSpec spec{
          .num_samples = 10, .batch_size = 8, .shuffle = shuffle, .rank = rank, .world_size = 4, .key = mtf::Key{1}};
      ArraySource source({column.view()}, spec, mtf::BufferPool::create());
      const mtf::Sampler sampler(spec);
      std::vector<std::int64_t> last(2);  // two rows for four ranks
      sampler.fill_order(0, 8, last);
      EXPECT_EQ(numbers(*source.fetch(0, 1), 0), std::vector<std::int64_t>{rank == 1 ? last[1] : last[0]});
      EXPECT_EQ(source.share_is_empty(1), rank >= 2);
      EXPECT_FALSE(source.share_is_empty(0));
    }
  }
}

TEST(ArraySource, ServesManyThreads) {
  const Column column(5000);
  const mtf::SamplerSpec spec{.num_samples = 5000, .batch_size = 16, .shuffle = true, .key = mtf::Key{9}};
  ArraySource source({column.view()}, spec, mtf::BufferPool::create());
  const mtf::Sampler sampler(spec);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t k = 0; k < 400; ++k) {
        const std::uint64_t pass = k % 3, batch = (k * 7 + t) % sampler.num_batches();
        std::vector<std::int64_t> rows(sampler.part(batch).size());
        sampler.fill(pass, batch, rows);
        ASSERT_EQ(numbers(*source.fetch(pass, batch), 0), rows);
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

TEST(ArraySource, RefusesArraysThatDoNotFit) {
  const Column a(10), b(9);
  const auto pool = mtf::BufferPool::create();
  EXPECT_THROW(ArraySource({}, mtf::SamplerSpec{.num_samples = 10}, pool), mtf::ConfigError);
  EXPECT_THROW(ArraySource({a.view(), b.view()}, mtf::SamplerSpec{.num_samples = 10}, pool), mtf::ConfigError);
  EXPECT_THROW(ArraySource({a.view()}, mtf::SamplerSpec{.num_samples = 11}, pool), mtf::ConfigError);
}

TEST(ArraySource, GivesNoMemoryForABatchOfMoreBytesThanCanBeCounted) {
  const std::byte item{};
  const std::uint64_t shape[] = {std::uint64_t{1} << 40};
  const std::ptrdiff_t strides[] = {0};
  const std::uint64_t half = std::uint64_t{1} << 39;
  const mtf::ArrayView windows = mtf::windows_of(&item, shape, strides, 1, half, 1);
  ArraySource source({windows}, {.num_samples = windows.num_rows, .batch_size = half}, mtf::BufferPool::create());
  EXPECT_EQ(source.max_batch_bytes(), std::numeric_limits<std::size_t>::max());
  EXPECT_THROW(static_cast<void>(source.fetch(0, 0)), std::bad_alloc);
}

TEST(ArraySource, SizesTheBudgetOfEmptySources) {
  const Column none(0);
  const ArraySource source({none.view()}, mtf::SamplerSpec{.num_samples = 0}, mtf::BufferPool::create());
  EXPECT_EQ(source.num_batches(), 0U);
  EXPECT_EQ(source.max_batch_bytes(), 0U);
}

}  // namespace
