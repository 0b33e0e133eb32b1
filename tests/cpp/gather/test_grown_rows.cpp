#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/gather/array_rows.hpp"
#include "mtf/gather/grown_rows.hpp"

namespace {

using mtf::ArrayRows;
using mtf::GrownRows;
using mtf::Key;

constexpr std::uint64_t kThen = 10;
constexpr std::uint64_t kNow = 13;
constexpr Key kKey{7};

std::shared_ptr<const ArrayRows> numbers(const std::vector<std::int64_t>& values, std::uint64_t num_rows) {
  const std::array<std::uint64_t, 1> shape{num_rows};
  const std::array<std::ptrdiff_t, 1> strides{sizeof(std::int64_t)};
  const auto view =
      mtf::view_of(reinterpret_cast<const std::byte*>(values.data()), shape, strides, sizeof(std::int64_t));
  const mtf::RowField field{
      .name = "x", .dtype = "int64", .item_bytes = sizeof(std::int64_t), .shape = {}, .counts_positions = false};
  return std::make_shared<ArrayRows>(std::vector{view}, std::vector{field}, true);
}

class GrownRowsTest : public testing::Test {
 protected:
  GrownRowsTest() : values_(kNow) { std::iota(values_.begin(), values_.end(), 0); }

  std::vector<std::int64_t> values_;
};

std::vector<std::uint64_t> rows_of(const mtf::RowSource& source, std::uint64_t pass, std::uint64_t begin,
                                   std::uint64_t end) {
  std::vector<std::uint64_t> places(end - begin);
  std::iota(places.begin(), places.end(), begin);
  std::vector<std::uint64_t> rows(places.size());
  source.find_rows(kKey, pass, places, rows);
  return rows;
}

TEST_F(GrownRowsTest, ThePassUnderWayKeepsItsOrderAndOthersHaveAllRows) {
  const auto now = numbers(values_, kNow), then = numbers(values_, kThen);
  const GrownRows grown(now, then, 2);
  EXPECT_EQ(grown.num_rows(), kNow);
  EXPECT_EQ(rows_of(grown, 2, kNow - 6, kNow), rows_of(*then, 2, kThen - 6, kThen));
  EXPECT_EQ(rows_of(grown, 3, 0, kNow), rows_of(*now, 3, 0, kNow));
  EXPECT_THROW(rows_of(grown, 2, 2, 4), std::out_of_range);
}

TEST_F(GrownRowsTest, RowsAreWrittenAndFoundWhereTheyAreGiven) {
  const GrownRows grown(numbers(values_, kNow), numbers(values_, kThen), 2);
  for (const std::uint64_t pass : {2, 3}) {
    const std::uint64_t begin = pass == 2 ? kNow - kThen : 0;
    for (std::uint64_t place = begin; place < kNow; ++place) {
      std::int64_t value = -1;
      const std::array<std::uint64_t, 1> places{place};
      const std::array<std::uint32_t, 1> slots{0};
      const std::array<std::byte*, 1> buffers{reinterpret_cast<std::byte*>(&value)};
      grown.write(kKey, pass, places, slots, buffers);
      EXPECT_EQ(static_cast<std::uint64_t>(value), rows_of(grown, pass, place, place + 1)[0]);
      EXPECT_EQ(grown.place_of(kKey, pass, static_cast<std::uint64_t>(value)), place);
    }
  }
  EXPECT_EQ(grown.place_of(kKey, 2, kThen), kNow);  // it came later
}

TEST_F(GrownRowsTest, FewerRowsAreRefused) {
  EXPECT_THROW(GrownRows(numbers(values_, kThen), numbers(values_, kNow), 2), mtf::ConfigError);
}

}  // namespace
