#include <gtest/gtest.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "mtf/blend/batch_sizes.hpp"
#include "mtf/error.hpp"

namespace {

using mtf::BatchSizes;

TEST(BatchSizes, StartIsTheSumOfTheSizesBefore) {
  const BatchSizes sizes({{0, 3}, {4, 5}, {5, 1}, {9, 7}});
  std::uint64_t start = 0;
  for (std::uint64_t batch = 0; batch < 50; ++batch) {
    const std::uint64_t size = batch < 4 ? 3 : batch < 5 ? 5 : batch < 9 ? 1 : 7;
    ASSERT_EQ(sizes.size(batch), size) << batch;
    ASSERT_EQ(sizes.start(batch), start) << batch;
    for (std::uint64_t i = 0; i < size; ++i) {
      ASSERT_EQ(sizes.batch_of(start + i), batch);
    }
    start += size;
  }
  EXPECT_EQ(sizes.smallest(), 1U);
  EXPECT_EQ(sizes.largest(), 7U);
}

TEST(BatchSizes, FarBatchesAreArithmeticAndTheEndIsAnError) {
  const BatchSizes sizes({{0, 256}, {2000, 512}});
  EXPECT_EQ(sizes.start(1'000'000'000), 2000U * 256 + (1'000'000'000ULL - 2000) * 512);
  EXPECT_EQ(sizes.batch_of(sizes.start(1'000'000'000)), 1'000'000'000U);
  EXPECT_THROW(static_cast<void>(sizes.start(BatchSizes::kMaxSamples)), std::out_of_range);
  EXPECT_THROW(static_cast<void>(sizes.start(~std::uint64_t{0})), std::out_of_range);
}

TEST(BatchSizes, RefusesStagesThatMeanNothing) {
  const std::vector<std::vector<BatchSizes::Stage>> bad = {{},
                                                           {{1, 4}},
                                                           {{0, 0}},
                                                           {{0, 4}, {0, 5}},
                                                           {{0, 4}, {7, 5}, {6, 5}},
                                                           {{0, (1ULL << 31) + 1}},
                                                           {{0, 1ULL << 31}, {1ULL << 31, 2}}};
  for (const auto& stages : bad) {
    EXPECT_THROW(BatchSizes{stages}, mtf::ConfigError);
  }
}

}  // namespace
