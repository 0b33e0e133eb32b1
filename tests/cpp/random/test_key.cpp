#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "mtf/random/key.hpp"

namespace {

using mtf::fold_in;
using mtf::Key;
using mtf::KeyUse;
using mtf::Stream;

TEST(FoldIn, DependsOnEveryBitOfKeyAndData) {
  for (const std::uint64_t seed : {0ull, 1ull, ~0ull}) {
    const Key base = fold_in(Key{seed}, seed);
    for (int bit = 0; bit < 64; ++bit) {
      for (const Key other : {fold_in(Key{seed ^ 1ull << bit}, seed), fold_in(Key{seed}, seed ^ 1ull << bit)}) {
        const int changed = std::popcount(base.value ^ other.value);
        EXPECT_GT(changed, 8) << bit;
        EXPECT_LT(changed, 56) << bit;
      }
    }
  }
}

// Sums and products of seeds and epochs collide; folded keys must not.
TEST(FoldIn, NeighbouringSeedsAndNumbersDoNotCollide) {
  std::set<std::uint64_t> keys;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    for (std::uint64_t data = 0; data < 300; ++data) {
      keys.insert(fold_in(Key{seed}, data).value);
    }
  }
  EXPECT_EQ(keys.size(), 90000u);
  EXPECT_NE(fold_in(fold_in(Key{1}, 2), 3), fold_in(fold_in(Key{1}, 3), 2));
}

TEST(FoldIn, UsesOfAKeyShareNoBits) {
  const Key key{42};
  EXPECT_NE(fold_in(key, 7, KeyUse::fold_integer), fold_in(key, 7, KeyUse::fold_name));
  EXPECT_NE(fold_in(key, 0).value, Stream(key).next());
  EXPECT_NE(fold_in(key, "7"), fold_in(key, 7));
  EXPECT_NE(fold_in(key, "ab"), fold_in(key, "ba"));
  EXPECT_NE(fold_in(key, ""), key);
}

TEST(Stream, ContinuesFromAnyPosition) {
  Stream stream(Key{9});
  for (std::uint64_t position = 0; position < 20; ++position) {
    EXPECT_EQ(stream.position(), position);
    EXPECT_EQ(Stream(Key{9}, position).next(), stream.next());
  }
}

TEST(Stream, BoundedDrawsAreUniform) {
  for (const std::uint64_t bound : {1ull, 2ull, 3ull, 10ull, 64ull, 1000ull}) {
    Stream stream(fold_in(Key{1}, bound));
    std::vector<double> counts(bound);
    const double expected = 2000;
    for (std::uint64_t draw = 0; draw < 2000 * bound; ++draw) {
      const std::uint64_t value = stream.bounded(bound);
      ASSERT_LT(value, bound);
      ++counts[value];
    }
    double statistic = 0;
    for (const double count : counts) {
      statistic += (count - expected) * (count - expected) / expected;
    }
    const double freedom = static_cast<double>(bound - 1);
    EXPECT_LE(std::abs(statistic - freedom), 4.5 * std::sqrt(2 * freedom)) << bound;
  }
}

// With the bound 3 * 2^62 a plain multiplication would give every third value twice as often as the others.
TEST(Stream, BoundedDrawsRejectWhatWouldBeBiased) {
  Stream stream(Key{2});
  std::vector<int> counts(3);
  for (int draw = 0; draw < 30000; ++draw) {
    ++counts[stream.bounded(3ull << 62) % 3];
  }
  for (const int count : counts) {
    EXPECT_NEAR(count, 10000, 400);
  }
  EXPECT_GT(stream.position(), 30000u + 8000u) << "a quarter of the words is rejected";
}

}  // namespace
