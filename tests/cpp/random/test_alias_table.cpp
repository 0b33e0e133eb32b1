#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/random/alias_table.hpp"

namespace {

using mtf::AliasTable;
using mtf::Key;
using mtf::Simd;

/// n weights that sum to 2^31: differently lopsided for each `kind`.
std::vector<std::uint32_t> make_weights(std::size_t n, int kind) {
  std::vector<double> raw(n);
  mtf::Stream stream{Key{n * 10 + static_cast<std::size_t>(kind)}};
  for (std::size_t i = 0; i < n; ++i) {
    const double uniform = static_cast<double>(stream.bounded(1 << 20) + 1);
    raw[i] = kind == 0   ? 1.0
             : kind == 1 ? uniform
             : kind == 2 ? 1.0 / static_cast<double>(i + 1)
                         : std::pow(uniform, 6);
  }
  const double sum = std::accumulate(raw.begin(), raw.end(), 0.0);
  std::vector<std::uint32_t> weights(n);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < n; ++i) {
    weights[i] = static_cast<std::uint32_t>(raw[i] / sum * 2147483000.0);
    total += weights[i];
  }
  weights[n / 2] += static_cast<std::uint32_t>(AliasTable::kTotalWeight - total);
  return weights;
}

/// How many of the 2^32 words draw each source: inside a cell the source changes at most once, so bisection finds
/// where.
std::vector<std::uint64_t> count_words(const AliasTable& table, std::size_t n) {
  const std::size_t num_cells = std::max<std::size_t>(2, std::bit_ceil(n));
  const std::uint64_t cell_words = (std::uint64_t{1} << 32) / num_cells;
  std::vector<std::uint64_t> counts(num_cells);
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    const std::uint64_t first = cell * cell_words;
    const auto draw = [&](std::uint64_t offset) { return table(static_cast<std::uint32_t>(first + offset)); };
    const std::uint32_t before = draw(0);
    std::uint64_t low = 1, high = cell_words;
    while (low < high) {
      const std::uint64_t middle = (low + high) / 2;
      if (draw(middle) == before) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    counts[before] += low;
    if (low < cell_words) {
      counts[draw(cell_words - 1)] += cell_words - low;
    }
  }
  return counts;
}

TEST(AliasTable, GivesExactlyTheWeightsOverAllWords) {
  for (const std::size_t n : {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 1023, 1024, 1025, 100000}) {
    for (const int kind : {0, 1, 2, 3}) {
      const auto weights = make_weights(n, kind);
      const auto counts = count_words(AliasTable(weights), n);
      for (std::size_t i = 0; i < counts.size(); ++i) {
        ASSERT_EQ(counts[i], i < n ? 2 * std::uint64_t{weights[i]} : 0) << n << " " << kind << " " << i;
      }
    }
  }
}

// Ten cells are few enough to try a sample of the words one by one: the bisection above assumes one change per cell.
TEST(AliasTable, ChangesSourceAtMostOnceInsideACell) {
  for (const std::size_t n : {2, 3, 10}) {
    const AliasTable table(make_weights(n, 1));
    int changes = 0;
    std::uint32_t before = table(0);
    for (std::uint64_t word = 0; word < std::uint64_t{1} << 32; word += 257) {
      const std::uint32_t now = table(static_cast<std::uint32_t>(word));
      changes += now != before;
      before = now;
    }
    EXPECT_LE(changes, static_cast<int>(2 * std::bit_ceil(n)));
  }
}

TEST(AliasTable, FillEqualsSingleDrawsAtEveryCut) {
  for (const std::size_t n : {1, 2, 3, 8, 9, 16, 17, 64, 1024, 1025, 5000}) {
    const AliasTable table(make_weights(n, 3));
    for (const std::uint64_t start : {std::uint64_t{0}, (std::uint64_t{1} << 34) - 600, std::uint64_t{1} << 40}) {
      std::vector<std::int32_t> all(1300);
      for (std::size_t t = 0; t < all.size(); ++t) {
        mtf::Stream stream(Key{5}, (start + t) / 2);
        const std::uint64_t pair = stream.next();
        all[t] = static_cast<std::int32_t>(table(static_cast<std::uint32_t>((start + t) % 2 ? pair >> 32 : pair)));
      }
      mtf::Stream cuts{Key{n}};
      for (int trial = 0; trial < 100; ++trial) {
        const std::size_t begin = cuts.bounded(all.size());
        std::vector<std::int32_t> part(cuts.bounded(all.size() - begin + 1));
        table.fill(Key{5}, start + begin, part, trial % 2 ? Simd::portable : mtf::best_simd());
        ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(begin))) << n;
      }
    }
  }
}

TEST(AliasTable, RefusesAnotherSum) {
  const std::vector<std::uint32_t> light{1u << 30, (1u << 30) - 1};
  EXPECT_THROW(AliasTable{light}, mtf::ConfigError);
  const std::vector<std::uint32_t> heavy(3, std::numeric_limits<std::uint32_t>::max());
  EXPECT_THROW(AliasTable{heavy}, mtf::ConfigError);
  EXPECT_THROW(AliasTable{std::vector<std::uint32_t>{}}, mtf::ConfigError);
}

TEST(AliasTable, NeverDrawsASourceWithoutWeight) {
  const std::vector<std::uint32_t> weights{0, 1u << 30, 0, 1u << 30, 0};
  const auto counts = count_words(AliasTable(weights), weights.size());
  EXPECT_EQ(counts, (std::vector<std::uint64_t>{0, 1ull << 31, 0, 1ull << 31, 0, 0, 0, 0}));
}

}  // namespace
