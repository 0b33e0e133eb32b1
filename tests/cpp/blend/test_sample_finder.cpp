#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "mtf/blend/sample_finder.hpp"
#include "mtf/gather/array_rows.hpp"

namespace {

using mtf::BlendPart;
using mtf::Key;
using mtf::SampleFinder;
using mtf::SampleRows;
using mtf::SampleSpan;

const std::vector<std::uint64_t> kLengths = {13, 5000, 700, 1};

mtf::MixtureSpec spec(std::int64_t num_samples) {
  mtf::MixtureSpec made;
  made.config.strategy = mtf::Strategy::weighted;
  made.config.order = mtf::WeightedOrder::shuffled;
  made.config.weights = {0.3, 0.5, 0.15, 0.05};
  made.config.policy = mtf::EpochPolicy::fixed_num_steps;
  made.config.steps_per_epoch = num_samples;
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    made.sources.push_back({"s" + std::to_string(i), kLengths[i]});
  }
  return made;
}

std::vector<BlendPart> parts() {
  static const std::vector<std::byte> memory(5000);
  std::vector<BlendPart> made;
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    const std::uint64_t shape[] = {kLengths[i]};
    const std::ptrdiff_t strides[] = {1};
    const mtf::RowField field{.name = "x", .dtype = "uint8", .item_bytes = 1, .shape = {}, .counts_positions = false};
    made.push_back({std::make_shared<mtf::ArrayRows>(std::vector{mtf::view_of(memory.data(), shape, strides, 1)},
                                                     std::vector{field}, true),
                    Key{100 + i}});
  }
  return made;
}

void expect_equal(const SampleSpan& found, const SampleSpan& wanted) {
  EXPECT_EQ(std::vector(found.sources.begin(), found.sources.end()),
            std::vector(wanted.sources.begin(), wanted.sources.end()));
  EXPECT_EQ(std::vector(found.passes.begin(), found.passes.end()),
            std::vector(wanted.passes.begin(), wanted.passes.end()));
  EXPECT_EQ(std::vector(found.rows.begin(), found.rows.end()), std::vector(wanted.rows.begin(), wanted.rows.end()));
}

TEST(SampleFinder, BlocksHoldWhatIsFoundAlone) {
  SampleFinder finder({spec(1 << 20), 7}, parts(), true), alone({spec(1 << 20), 7}, parts(), true);
  SampleRows memory;
  for (const std::uint64_t begin : {0, 60, 30, 90, 599'970, 120, 0, 1'000'000}) {
    expect_equal(finder.find_in_block({begin, 30}, {begin / 300 * 300, 300}), alone.find({begin, 30}, memory));
  }
}

TEST(SampleFinder, FindsThePlacesThatAreDrawn) {
  SampleFinder finder({spec(1 << 20), 7}, parts(), true);
  SampleRows memory;
  const mtf::SampleDraws draws = finder.draws({77'777, 2'000});
  const SampleSpan found = finder.find({77'777, 2'000}, memory);
  const std::vector<BlendPart> sources = parts();
  for (std::size_t k = 0; k < draws.size(); ++k) {
    ASSERT_EQ(found.sources[k], draws.sources[k]);
    ASSERT_EQ(found.passes[k], static_cast<std::uint64_t>(draws.passes[k]));
    const auto i = static_cast<std::size_t>(draws.sources[k]);
    const auto place = static_cast<std::uint64_t>(draws.places[k]);
    std::uint64_t row = 0;
    sources[i].rows->find_rows(sources[i].key, found.passes[k], {&place, 1}, {&row, 1});
    ASSERT_EQ(found.rows[k], row);
  }
}

TEST(SampleFinder, BlocksDontReachBehindAnEdit) {
  mtf::Schedule schedule(spec(1 << 20), 7);
  schedule.seek({0}, 1'000);
  schedule.remove_source("s1");
  std::vector<BlendPart> left = parts();
  left[1] = {nullptr, Key{}};
  SampleFinder finder(std::move(schedule), left, false);
  const SampleSpan found = finder.find_in_block({1'000, 24}, {0, 2'048});
  for (const std::int32_t source : found.sources) {
    EXPECT_NE(source, 1);
  }
  EXPECT_EQ(finder.find_in_block({2'000, 48}, {0, 2'048}).block, found.block);
  EXPECT_THROW(static_cast<void>(finder.find_in_block({512, 256}, {0, 2'048})), std::out_of_range);
  SampleRows memory;
  EXPECT_THROW(static_cast<void>(finder.find({900, 200}, memory)), std::out_of_range);
}

TEST(SampleFinder, BlocksEndWithTheSchedule) {
  SampleFinder finder({spec(1'000), 7}, parts(), false);
  EXPECT_EQ(finder.find_in_block({900, 100}, {0, 2'048}).size(), 100U);
  EXPECT_THROW(static_cast<void>(finder.find_in_block({950, 100}, {0, 2'048})), std::out_of_range);
  SampleRows memory;
  EXPECT_THROW(static_cast<void>(finder.find({950, 100}, memory)), std::out_of_range);
  EXPECT_THROW(static_cast<void>(finder.draws({950, 100})), std::out_of_range);
}

}  // namespace
