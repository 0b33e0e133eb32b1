#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

#include "mtf/random/block_order.hpp"

namespace {

using mtf::BlockOrder;
using mtf::Key;
using Wide = unsigned __int128;

std::vector<int> order_of(const BlockOrder& orders, std::uint64_t number, std::size_t size) {
  const BlockOrder::Items items = orders.first(number, size, size);
  return {items.begin(), items.begin() + static_cast<std::ptrdiff_t>(size)};
}

/// The definition, digit by digit: a word below the largest multiple of the bounds' product that 2^64 holds, times that
/// product over 2^64, is a number whose digits to the bounds are the draws.
std::vector<int> defined_order(Key key, std::uint64_t number, std::size_t size, int& num_refused) {
  std::vector<int> items(size);
  std::iota(items.begin(), items.end(), 0);
  mtf::Stream words(key, 8 * number);
  for (std::size_t begin = 0; begin < size; begin += 8) {
    const std::size_t end = std::min(begin + 8, size);
    std::uint64_t product = 1;
    for (std::size_t i = begin; i < end; ++i) {
      product *= size - i;
    }
    mtf::Stream again(fold_in(key, words.position()));
    Wide scaled = Wide{words.next()} * product;
    while (static_cast<std::uint64_t>(scaled) < (0 - product) % product) {
      ++num_refused;
      scaled = Wide{again.next()} * product;
    }
    auto digits = static_cast<std::uint64_t>(scaled >> 64);
    for (std::size_t i = begin; i < end; ++i) {
      product /= size - i;
      std::swap(items[i], items[i + digits / product]);
      digits %= product;
    }
  }
  return items;
}

TEST(BlockOrder, IsTheDefinedOrderAlsoWhereWordsAreRefused) {
  const BlockOrder orders(Key{3});
  int num_refused = 0;
  for (const std::size_t size : {0, 1, 2, 7, 8, 9, 17, 63, 64}) {
    for (std::uint64_t number = 0; number < 300; ++number) {
      ASSERT_EQ(order_of(orders, number, size), defined_order(Key{3}, number, size, num_refused)) << number;
    }
  }
  // Refused words are rare. Their blocks are looked up by the first eight draws of whole blocks.
  constexpr std::uint64_t kProduct = std::uint64_t{64} * 63 * 62 * 61 * 60 * 59 * 58 * 57;
  constexpr std::uint64_t kNumBlocks = 1'000'000;
  for (std::uint64_t number = 0; number < kNumBlocks; ++number) {
    const std::uint64_t word = mtf::Stream::block(Key{3}, 4 * number)[0];
    if (word * kProduct < (0 - kProduct) % kProduct) {
      ASSERT_EQ(order_of(orders, number, 64), defined_order(Key{3}, number, 64, num_refused)) << number;
    }
  }
  EXPECT_GT(num_refused, 0);
}

TEST(BlockOrder, TheFrontOfAnOrderDoesNotDependOnHowMuchOfItIsAskedFor) {
  const BlockOrder orders(Key{1});
  for (const std::size_t size : {1, 5, 8, 40, 64}) {
    const std::vector<int> whole = order_of(orders, 77, size);
    for (std::size_t num = 0; num <= size; ++num) {
      const BlockOrder::Items front = orders.first(77, size, num);
      ASSERT_TRUE(std::equal(front.begin(), front.begin() + static_cast<std::ptrdiff_t>(num), whole.begin())) << num;
    }
  }
}

TEST(BlockOrder, ManyBlocksAtOnceAreTheSame) {
  const BlockOrder orders(Key{9});
  for (const std::uint64_t begin : {std::uint64_t{0}, std::uint64_t{5}, (std::uint64_t{1} << 56) - 1}) {
    constexpr std::size_t kNumBlocks = 40;
    std::vector<std::int32_t> items(64 * kNumBlocks);
    std::iota(items.begin(), items.end(), 0);
    orders.shuffle(begin, items);
    for (std::size_t block = 0; block < kNumBlocks; ++block) {
      const std::vector<int> order = order_of(orders, begin + block, 64);
      for (std::size_t i = 0; i < 64; ++i) {
        ASSERT_EQ(items[64 * block + i], static_cast<std::int32_t>(64 * block) + order[i]);
      }
    }
  }
}

/// Standard deviations between a chi-square statistic of equally likely cells and its mean (Wilson and Hilferty).
double sigmas_from_uniform(const std::vector<std::uint64_t>& counts, double freedom, double scale = 1) {
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}));
  const double expected = total / static_cast<double>(counts.size());
  double statistic = 0;
  for (const std::uint64_t count : counts) {
    statistic += std::pow(static_cast<double>(count) - expected, 2) / expected;
  }
  statistic *= scale;
  return (std::cbrt(statistic / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
}

TEST(BlockOrder, EveryOrderOfFewItemsIsEquallyLikely) {
  for (const std::size_t size : {2, 3, 4, 5, 6}) {
    const BlockOrder orders(Key{size});
    std::map<std::vector<int>, std::uint64_t> seen;
    std::uint64_t num_orders = 1;
    for (std::size_t i = 2; i <= size; ++i) {
      num_orders *= i;
    }
    for (std::uint64_t number = 0; number < 200 * num_orders; ++number) {
      ++seen[order_of(orders, number, size)];
    }
    ASSERT_EQ(seen.size(), num_orders);
    std::vector<std::uint64_t> counts;
    for (const auto& [order, count] : seen) {
      counts.push_back(count);
    }
    EXPECT_LT(std::abs(sigmas_from_uniform(counts, static_cast<double>(num_orders - 1))), 4) << size;
  }
}

TEST(BlockOrder, PlacesAndNeighboursOfWholeBlocksAreUniform) {
  constexpr std::size_t kSize = 64;
  constexpr std::uint64_t kNumBlocks = 20'000;
  const BlockOrder orders(Key{4});
  std::vector<std::uint64_t> places(kSize * kSize), steps(kSize - 1);
  for (std::uint64_t number = 0; number < kNumBlocks; ++number) {
    const std::vector<int> order = order_of(orders, number, kSize);
    for (std::size_t i = 0; i < kSize; ++i) {
      ++places[i * kSize + static_cast<std::size_t>(order[i])];
      const auto step = static_cast<std::size_t>(order[(i + 1) % kSize] - order[i] + static_cast<int>(kSize)) % kSize;
      ++steps[step - 1];
    }
  }
  // Rows and columns have fixed sums, which scales the statistic and leaves (n - 1)^2 degrees of freedom.
  const double n = kSize;
  EXPECT_LT(std::abs(sigmas_from_uniform(places, (n - 1) * (n - 1), (n - 1) / n)), 4);
  EXPECT_LT(sigmas_from_uniform(steps, n - 2), 5);
}

}  // namespace
