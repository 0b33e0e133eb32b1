// Sequential against a step by step cursor.
#include <gtest/gtest.h>

#include "mtf/error.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

using test::Slots;

Slots cursor(std::span<const std::uint64_t> blocks, std::span<const std::uint64_t> repeated, std::size_t max_steps) {
  Slots out;
  for (std::uint64_t round = 0; out.size() < max_steps; ++round) {
    const std::size_t before = out.size();
    const std::span<const std::uint64_t> now = round == 0 ? blocks : repeated;
    for (std::size_t slot = 0; slot < now.size(); ++slot) {
      for (std::uint64_t i = 0; i < now[slot] && out.size() < max_steps; ++i) {
        out.push_back(static_cast<std::int32_t>(slot));
      }
    }
    if (out.size() == before && round > 0) {
      break;
    }
  }
  return out;
}

TEST(Sequential, MatchesTheWalkForAllSmallBlocks) {
  const std::vector<std::uint64_t> choices{0, 1, 2, 5, kUnbounded};
  for (std::size_t size = 1; size <= 4; ++size) {
    test::for_each_vector(size, choices, [&](const std::vector<std::uint64_t>& blocks) {
      const Sequential once(blocks);
      ASSERT_NO_FATAL_FAILURE(test::expect_draws(once, cursor(blocks, {}, 30)));
      const Sequential cycling(blocks, true);
      ASSERT_NO_FATAL_FAILURE(test::expect_draws(cycling, cursor(blocks, blocks, 30)));
    });
  }
}

TEST(Sequential, LaterRoundsMayDiffer) {
  const std::vector<std::uint64_t> choices{0, 1, 3};
  test::for_each_vector(3, choices, [&](const std::vector<std::uint64_t>& blocks) {
    test::for_each_vector(3, choices, [&](const std::vector<std::uint64_t>& repeated) {
      const Sequential pattern(blocks, repeated);
      ASSERT_NO_FATAL_FAILURE(test::expect_draws(pattern, cursor(blocks, repeated, 30)));
    });
  });
}

TEST(Sequential, ChunksAgree) {
  const std::vector<std::uint64_t> blocks{1, 0, 7, 100};
  test::expect_chunks_agree(Sequential(blocks, true), 20'000);
  const std::vector<std::uint64_t> long_blocks{6'000, 9'000, 5'000};
  test::expect_chunks_agree(Sequential(long_blocks), 20'000);
}

TEST(Sequential, BadInputIsRefused) {
  const std::vector<std::uint64_t> two{1, 2};
  const std::vector<std::uint64_t> three{1, 2, 3};
  EXPECT_THROW(Sequential(std::span<const std::uint64_t>{}), ConfigError);
  EXPECT_THROW(Sequential(two, three), ConfigError);
}

}  // namespace
}  // namespace mtf
