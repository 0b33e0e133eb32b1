#include <gtest/gtest.h>

#include <cstdint>

#include "mtf/sampling/shard.hpp"

namespace {

TEST(Shard, PartsLieEndToEndAndDifferByAtMostOne) {
  for (std::uint64_t world_size = 1; world_size <= 17; ++world_size) {
    for (std::uint64_t size = 0; size <= 70; ++size) {
      std::uint64_t end = 0;
      for (std::uint64_t rank = 0; rank < world_size; ++rank) {
        const mtf::ShardRange range = mtf::shard(size, rank, world_size);
        ASSERT_EQ(range.begin, end);
        ASSERT_GE(range.size(), size / world_size);
        ASSERT_LE(range.size(), (size + world_size - 1) / world_size);
        ASSERT_LE(range.size(), mtf::shard(size, 0, world_size).size());
        end = range.end;
      }
      ASSERT_EQ(end, size);
    }
  }
}

TEST(Shard, DoesNotOverflow) {
  const std::uint64_t size = ~0ull, world_size = 1u << 31;
  EXPECT_EQ(mtf::shard(size, world_size - 1, world_size).end, size);
}

}  // namespace
