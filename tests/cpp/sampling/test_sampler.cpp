#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/sampling/sampler.hpp"

namespace {

using mtf::Key;
using mtf::Sampler;
using mtf::SamplerSpec;

std::vector<std::int64_t> batch_of(const Sampler& sampler, std::uint64_t pass, std::uint64_t batch) {
  std::vector<std::int64_t> out(sampler.part(batch).size());
  sampler.fill(pass, batch, out);
  return out;
}

std::vector<std::int64_t> whole_pass(const Sampler& sampler, std::uint64_t pass) {
  std::vector<std::int64_t> samples;
  for (std::uint64_t batch = 0; batch < sampler.num_batches(); ++batch) {
    const auto part = batch_of(sampler, pass, batch);
    samples.insert(samples.end(), part.begin(), part.end());
  }
  return samples;
}

std::vector<std::int64_t> sorted(std::vector<std::int64_t> samples) {
  std::sort(samples.begin(), samples.end());
  return samples;
}

TEST(Sampler, SequentialPassIsTheSamplesInOrder) {
  const Sampler sampler({.num_samples = 10, .batch_size = 4});
  EXPECT_EQ(sampler.num_batches(), 3u);
  EXPECT_EQ(batch_of(sampler, 0, 1), (std::vector<std::int64_t>{4, 5, 6, 7}));
  EXPECT_EQ(batch_of(sampler, 5, 2), (std::vector<std::int64_t>{8, 9}));
}

TEST(Sampler, DropLastLeavesOutTheIncompleteBatch) {
  EXPECT_EQ(Sampler({.num_samples = 10, .batch_size = 4, .drop_last = true}).num_batches(), 2u);
  EXPECT_EQ(Sampler({.num_samples = 8, .batch_size = 4, .drop_last = true}).num_batches(), 2u);
  EXPECT_EQ(Sampler({.num_samples = 3, .batch_size = 4, .drop_last = true}).num_batches(), 0u);
  EXPECT_EQ(Sampler({.num_samples = 0, .batch_size = 4}).num_batches(), 0u);
}

TEST(Sampler, TheRestOfAPassIsWhatItHadLeftInOtherBatches) {
  const Sampler before({.num_samples = 10, .batch_size = 3, .shuffle = true, .key = Key{9}});
  auto want = whole_pass(before, 4);
  want.erase(want.begin(), want.begin() + 6);  // two batches were given
  // 14 samples in batches of 4 are 4 batches; the 4 samples left are one, the last of the pass.
  const SamplerSpec spec{.num_samples = 14,
                         .batch_size = 4,
                         .shuffle = true,
                         .key = Key{9},
                         .rest = mtf::RestOfPass{.pass = 4, .num_samples = 10, .first_sample = 6, .first_batch = 3}};
  const Sampler after(spec);
  EXPECT_EQ(after.num_batches_in(4), 4u);
  std::vector<std::int64_t> rest(4);
  after.fill(4, 3, rest);
  EXPECT_EQ(rest, want);
  EXPECT_THROW(after.fill(4, 2, rest), std::out_of_range);
  EXPECT_THROW(after.fill(4, 4, rest), std::out_of_range);
  const Sampler plain({.num_samples = 14, .batch_size = 4, .shuffle = true, .key = Key{9}});
  EXPECT_EQ(whole_pass(after, 5), whole_pass(plain, 5));
  EXPECT_THROW(Sampler({.num_samples = 9, .batch_size = 4, .rest = spec.rest}), mtf::ConfigError);
}

TEST(Sampler, ShuffledPassTakesEverySampleOnceAndPassesDiffer) {
  for (const std::uint64_t n : {1, 2, 7, 100, 4096, 4097, 10000}) {
    const Sampler sampler({.num_samples = n, .batch_size = 32, .shuffle = true, .key = Key{9}});
    std::vector<std::int64_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    const auto first = whole_pass(sampler, 0), second = whole_pass(sampler, 1);
    EXPECT_EQ(sorted(first), all);
    EXPECT_EQ(sorted(second), all);
    EXPECT_EQ(whole_pass(sampler, 0), first);
    if (n >= 100) {
      EXPECT_NE(first, second);
    }
  }
}

TEST(Sampler, OrderIsThePermutationOfThePassKey) {
  const Sampler sampler({.num_samples = 5000, .batch_size = 100, .shuffle = true, .key = Key{3}});
  const mtf::Permutation order(5000, mtf::fold_in(Key{3}, 2));
  const auto batch = batch_of(sampler, 2, 7);
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(static_cast<std::uint64_t>(batch[i]), order(700 + i));
  }
}

TEST(Sampler, GlobalOrderDoesNotDependOnTheNumberOfRanks) {
  for (const bool shuffle : {false, true}) {
    for (const bool drop_last : {false, true}) {
      SamplerSpec spec{.num_samples = 77, .batch_size = 12, .shuffle = shuffle, .drop_last = drop_last, .key = Key{4}};
      const auto alone = whole_pass(Sampler(spec), 3);
      for (std::uint32_t world_size = 2; world_size <= 13; ++world_size) {
        std::vector<std::int64_t> together;
        for (std::uint64_t batch = 0; batch < Sampler(spec).num_batches(); ++batch) {
          for (std::uint32_t rank = 0; rank < world_size; ++rank) {
            SamplerSpec part = spec;
            part.rank = rank;
            part.world_size = world_size;
            const auto samples = batch_of(Sampler(part), 3, batch);
            together.insert(together.end(), samples.begin(), samples.end());
          }
        }
        ASSERT_EQ(together, alone) << world_size;
      }
    }
  }
}

TEST(Sampler, GivesTheSamplesOfASubset) {
  const std::vector<std::int64_t> subset{90, 7, 7, 55, 1000000000000};
  const Sampler in_order(
      {.num_samples = 5, .batch_size = 3, .indices = std::make_shared<std::vector<std::int64_t>>(subset)});
  EXPECT_EQ(whole_pass(in_order, 0), subset);
  const Sampler shuffled({.num_samples = 5,
                          .batch_size = 3,
                          .shuffle = true,
                          .indices = std::make_shared<std::vector<std::int64_t>>(subset)});
  EXPECT_EQ(sorted(whole_pass(shuffled, 0)), sorted(subset));
}

TEST(Sampler, PlacesOfTheGlobalOrderCanBeReadByAnyRank) {
  const SamplerSpec spec{.num_samples = 50, .batch_size = 8, .shuffle = true, .rank = 2, .world_size = 3};
  SamplerSpec alone = spec;
  alone.rank = 0;
  alone.world_size = 1;
  std::vector<std::int64_t> places(20);
  Sampler(spec).fill_order(1, 30, places);
  const auto whole = whole_pass(Sampler(alone), 1);
  EXPECT_TRUE(std::equal(places.begin(), places.end(), whole.begin() + 30));
}

TEST(Sampler, RefusesBadInput) {
  EXPECT_THROW(Sampler({.num_samples = 5, .batch_size = 0}), mtf::ConfigError);
  EXPECT_THROW(Sampler({.num_samples = 5, .world_size = 0}), mtf::ConfigError);
  EXPECT_THROW(Sampler({.num_samples = 5, .rank = 2, .world_size = 2}), mtf::ConfigError);
  EXPECT_THROW(Sampler({.num_samples = (1ull << 62) + 1}), mtf::ConfigError);
  EXPECT_THROW(Sampler({.num_samples = 5, .indices = std::make_shared<std::vector<std::int64_t>>(2)}),
               mtf::ConfigError);
  const Sampler sampler({.num_samples = 10, .batch_size = 4});
  std::vector<std::int64_t> out(4);
  EXPECT_THROW(sampler.fill(0, 3, out), std::out_of_range);
  EXPECT_THROW(sampler.fill(0, 2, out), std::out_of_range);
  EXPECT_THROW(sampler.fill_order(0, 7, out), std::out_of_range);
}

TEST(Sampler, ThreadsOnDifferentPassesGetTheirOwnOrders) {
  const Sampler sampler({.num_samples = 999, .batch_size = 10, .shuffle = true, .key = Key{8}});
  std::vector<std::vector<std::int64_t>> expected, got(4);
  for (std::uint64_t pass = 0; pass < 4; ++pass) {
    expected.push_back(whole_pass(sampler, pass));
  }
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t pass = 0; pass < 4; ++pass) {
      threads.emplace_back([&, pass] { got[pass] = whole_pass(sampler, pass); });
    }
  }
  EXPECT_EQ(got, expected);
}

TEST(Sampler, PassesAndBatchesBeyond32And53Bits) {
  const Sampler small({.num_samples = 50, .batch_size = 8, .shuffle = true, .key = Key{3}});
  std::vector<std::vector<std::int64_t>> orders{whole_pass(small, 0), whole_pass(small, 1)};
  for (const std::uint64_t bits : {31, 32, 53, 63}) {
    for (const std::uint64_t pass :
         {(std::uint64_t{1} << bits) - 1, std::uint64_t{1} << bits, (std::uint64_t{1} << bits) + 1}) {
      orders.push_back(whole_pass(small, pass));
      std::vector<std::int64_t> all(50);
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(sorted(orders.back()), all) << pass;
    }
  }
  std::sort(orders.begin(), orders.end());
  EXPECT_EQ(std::adjacent_find(orders.begin(), orders.end()), orders.end()) << "two passes have one order";

  // 2^33 + 7 batches: the same rows for any number of ranks, in order, and none beyond the end.
  const std::uint64_t num_samples = ((std::uint64_t{1} << 33) + 6) * 10 + 3;
  const Sampler large({.num_samples = num_samples, .batch_size = 10});
  ASSERT_EQ(large.num_batches(), (std::uint64_t{1} << 33) + 7);
  for (const std::uint64_t batch : {(std::uint64_t{1} << 31), (std::uint64_t{1} << 32), large.num_batches() - 1}) {
    std::vector<std::int64_t> expected(batch + 1 == large.num_batches() ? 3 : 10);
    std::iota(expected.begin(), expected.end(), static_cast<std::int64_t>(batch * 10));
    EXPECT_EQ(batch_of(large, 0, batch), expected);
    std::vector<std::int64_t> joined;
    for (const std::uint32_t rank : {0, 1}) {
      const Sampler part({.num_samples = num_samples, .batch_size = 10, .rank = rank, .world_size = 2});
      const auto rows = batch_of(part, 0, batch);
      joined.insert(joined.end(), rows.begin(), rows.end());
    }
    EXPECT_EQ(joined, expected);
  }
}

}  // namespace
