#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "mtf/random/key.hpp"
#include "mtf/tokens/packing_table.hpp"

namespace {

using mtf::PackingTable;

/// Every piece is in one row, no row is too long, and `row_of` says which.
void check_table(const PackingTable& table, const std::vector<std::uint64_t>& counts) {
  std::vector<std::vector<std::uint64_t>> seen(counts.size());
  for (std::size_t length = 1; length < counts.size(); ++length) {
    seen[length].assign(counts[length], 0);
  }
  for (std::uint64_t row = 0; row < table.num_rows(); ++row) {
    const PackingTable::Row found = table.row(row);
    std::uint64_t sum = 0;
    for (const PackingTable::Entry& entry : found.entries) {
      for (std::uint64_t k = 0; k < entry.each; ++k) {
        const std::uint64_t piece = entry.first + found.nth * entry.each + k;
        ASSERT_LT(piece, counts[entry.length]);
        ++seen[entry.length][piece];
        ASSERT_EQ(table.row_of(entry.length, piece), row);
        sum += entry.length;
      }
    }
    ASSERT_GT(sum, 0u);
    ASSERT_LT(sum, counts.size());
  }
  for (const auto& of_length : seen) {
    for (const std::uint64_t times : of_length) {
      ASSERT_EQ(times, 1u);
    }
  }
}

/// Best-fit decreasing on single pieces: each goes to the fullest row that has room.
std::uint64_t best_fit_rows(const std::vector<std::uint64_t>& counts) {
  std::map<std::size_t, std::uint64_t> rooms;
  std::uint64_t rows = 0;
  const std::size_t size = counts.size() - 1;
  for (std::size_t length = size; length > 0; --length) {
    for (std::uint64_t k = 0; k < counts[length]; ++k) {
      std::size_t room = size;
      if (const auto found = rooms.lower_bound(length); found != rooms.end()) {
        room = found->first;
        if (--found->second == 0) {
          rooms.erase(found);
        }
      } else {
        ++rows;
      }
      if (room > length) {
        ++rooms[room - length];
      }
    }
  }
  return rows;
}

TEST(PackingTable, PlacesEveryPieceOnceForAllSmallCounts) {
  // All counts in [0, 3) of the lengths 1 to 6.
  for (std::uint64_t code = 0; code < 729; ++code) {
    std::vector<std::uint64_t> counts(7);
    std::uint64_t rest = code;
    for (std::size_t length = 1; length <= 6; ++length, rest /= 3) {
      counts[length] = rest % 3;
    }
    const PackingTable table(counts);
    check_table(table, counts);
    ASSERT_LE(table.num_rows(), best_fit_rows(counts)) << code;
  }
}

std::vector<std::uint64_t> log_normal(std::size_t size, double mean, double sigma, std::size_t num,
                                      std::uint64_t seed) {
  std::vector<std::uint64_t> counts(size + 1);
  mtf::Stream stream{mtf::Key{seed}};
  for (std::size_t k = 0; k < num; ++k) {
    const double u = (static_cast<double>(stream.next() >> 11) + 0.5) * 0x1p-53;
    const double v = static_cast<double>(stream.next() >> 11) * 0x1p-53;
    const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
    const auto tokens = static_cast<std::size_t>(std::max(1.0, std::round(std::exp(mean + sigma * normal))));
    counts[size] += (tokens - 1) / size;
    ++counts[(tokens - 1) % size + 1];
  }
  return counts;
}

TEST(PackingTable, NeedsAsManyRowsAsBestFitDecreasing) {
  struct Case {
    std::size_t size;
    double mean, sigma;
  };
  for (const Case& c : {Case{129, 4.0, .6}, Case{2049, 6.3, 1.1}, Case{4097, 6.5, 1.2}, Case{8193, 6.5, 1.2}}) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      const auto counts = log_normal(c.size, c.mean, c.sigma, 20000, seed);
      const PackingTable table(counts);
      check_table(table, counts);
      const auto best = static_cast<double>(best_fit_rows(counts));
      EXPECT_LE(static_cast<double>(table.num_rows()), 1 + best * 1.0005) << c.size << " " << seed;
    }
  }
}

TEST(PackingTable, DoesNotGrowWithThePieces) {
  auto counts = log_normal(2049, 6.3, 1.1, 50000, 1);
  const PackingTable few(counts);
  for (std::uint64_t& count : counts) {
    count *= 1000;
  }
  const PackingTable many(counts);
  EXPECT_LT(many.num_bytes(), 2 * few.num_bytes());
  EXPECT_NEAR(static_cast<double>(many.num_rows()), 1000.0 * static_cast<double>(few.num_rows()),
              static_cast<double>(many.num_rows()) / 1000);
}

}  // namespace
