#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/random/fisher_yates.hpp"
#include "mtf/random/permutation.hpp"

namespace {

using mtf::Key;
using mtf::Permutation;
using mtf::Simd;

std::vector<std::int64_t> all_images(const Permutation& permutation, Simd simd = mtf::best_simd()) {
  std::vector<std::int64_t> images(permutation.size());
  permutation.fill(0, images, simd);
  return images;
}

/// Whether each value of [0, n) is there once.
bool is_bijection(const std::vector<std::int64_t>& images) {
  std::vector<bool> seen(images.size());
  for (const std::int64_t image : images) {
    if (image < 0 || static_cast<std::uint64_t>(image) >= images.size() || seen[image]) {
      return false;
    }
    seen[image] = true;
  }
  return true;
}

/// The upper tail of a chi-square statistic as a number of standard deviations (Wilson and Hilferty).
double chi_square_sigmas(double statistic, double freedom) {
  return (std::cbrt(statistic / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
}

double chi_square(const std::vector<std::uint64_t>& counts) {
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}));
  const double expected = total / static_cast<double>(counts.size());
  double statistic = 0;
  for (const std::uint64_t count : counts) {
    statistic += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected) / expected;
  }
  return statistic;
}

TEST(Permutation, IsABijectionForEverySmallN) {
  for (std::uint64_t n = 0; n <= 5000; ++n) {
    ASSERT_TRUE(is_bijection(all_images(Permutation(n, mtf::fold_in(Key{1}, n))))) << n;
  }
}

TEST(Permutation, IsABijectionAroundPowersOfTwo) {
  for (std::uint64_t power = 4096; power <= std::uint64_t{1} << 20; power *= 2) {
    for (const std::uint64_t n : {power - 1, power, power + 1}) {
      for (const std::uint64_t seed : {0, 42}) {
        const Permutation permutation(n, Key{seed});
        const auto images = all_images(permutation);
        ASSERT_TRUE(is_bijection(images)) << n;
        ASSERT_EQ(images, all_images(permutation, Simd::portable)) << n;
      }
    }
  }
}

TEST(Permutation, SingleImagesEqualTheBulkAtEveryCut) {
  for (const std::uint64_t n : {1, 2, 5, 4095, 4096, 4097, 5000, 8191, 8192, 65537, 70001, 131073}) {
    const Permutation permutation(n, Key{7});
    const auto images = all_images(permutation);
    for (std::uint64_t i = 0; i < n; ++i) {
      ASSERT_EQ(permutation(i), static_cast<std::uint64_t>(images[i])) << n << " at " << i;
    }
    mtf::Stream cuts{Key{n}};
    for (int trial = 0; trial < 300; ++trial) {
      const std::uint64_t begin = cuts.bounded(n + 1);
      std::vector<std::int64_t> part(std::min<std::uint64_t>(cuts.bounded(1500), n - begin));
      permutation.fill(begin, part, trial % 2 ? Simd::portable : mtf::best_simd());
      ASSERT_TRUE(std::equal(part.begin(), part.end(), images.begin() + static_cast<std::ptrdiff_t>(begin)));
    }
  }
}

TEST(Permutation, HugeDomainsStayInsideAndInjective) {
  for (const std::uint64_t n : {(1ull << 31) + 1, 1ull << 32, (1ull << 32) + 1, (1ull << 53) + 1, (1ull << 61) + 1,
                                (1ull << 62) - 1, 1ull << 62}) {
    const Permutation permutation(n, Key{~0ull});
    for (const std::uint64_t begin : {std::uint64_t{0}, n / 2, n - 20000}) {
      std::vector<std::int64_t> images(20000), portable(20000);
      permutation.fill(begin, images);
      permutation.fill(begin, portable, Simd::portable);
      ASSERT_EQ(images, portable) << n;
      EXPECT_EQ(static_cast<std::uint64_t>(images[3]), permutation(begin + 3));
      std::sort(images.begin(), images.end());
      EXPECT_EQ(std::adjacent_find(images.begin(), images.end()), images.end());
      EXPECT_GE(images.front(), 0);
      EXPECT_LT(static_cast<std::uint64_t>(images.back()), n);
    }
  }
}

TEST(Permutation, InverseUndoesEveryImage) {
  const auto check = [](const Permutation& permutation, std::uint64_t i) {
    return permutation.inverse(permutation(i)) == i && permutation(permutation.inverse(i)) == i;
  };
  for (std::uint64_t n = 1; n <= 700; ++n) {
    for (const Permutation& permutation : {Permutation(n, Key{n}), Permutation::compact(n, Key{n})}) {
      for (std::uint64_t i = 0; i < n; ++i) {
        ASSERT_TRUE(check(permutation, i)) << n << " at " << i;
      }
    }
  }
  for (const std::uint64_t n : {4095ull, 4096ull, 4097ull, 8192ull, 8193ull, 70001ull}) {
    const Permutation permutation(n, Key{n});
    for (std::uint64_t i = 0; i < n; ++i) {
      ASSERT_TRUE(check(permutation, i)) << n << " at " << i;
    }
  }
  for (const std::uint64_t n : {1000000000ull, (1ull << 32) + 1, (1ull << 61) + 1, 1ull << 62}) {
    const Permutation permutation(n, Key{n});
    mtf::Stream indices{Key{1}};
    for (int trial = 0; trial < 20000; ++trial) {
      ASSERT_TRUE(check(permutation, indices.bounded(n))) << n;
    }
  }
}

TEST(Permutation, CompactOnesAreBijectionsAndFillAsTheyMap) {
  for (std::uint64_t n = 0; n <= 4200; ++n) {
    const Permutation permutation = Permutation::compact(n, mtf::fold_in(Key{2}, n));
    const auto images = all_images(permutation);
    ASSERT_TRUE(is_bijection(images)) << n;
    ASSERT_EQ(images, all_images(permutation, Simd::portable)) << n;
    for (std::uint64_t i = 0; i < n; i += 1 + n / 50) {
      ASSERT_EQ(permutation(i), static_cast<std::uint64_t>(images[i]));
    }
  }
}

TEST(Permutation, EmptyAndSingle) {
  const Permutation empty(0, Key{3});
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_NO_THROW(empty.fill(0, {}));
  EXPECT_EQ(Permutation(1, Key{3})(0), 0u);
}

TEST(Permutation, RefusesWhatLiesOutside) {
  EXPECT_THROW(Permutation((1ull << 62) + 1, Key{0}), mtf::ConfigError);
  std::vector<std::int64_t> out(3);
  for (const std::uint64_t n : {4, 5000}) {
    const Permutation permutation(n, Key{0});
    EXPECT_NO_THROW(permutation.fill(n - 3, out));
    EXPECT_THROW(permutation.fill(n - 2, out), std::out_of_range);
    EXPECT_THROW(permutation.fill(n + 1, {}), std::out_of_range);
    EXPECT_THROW(permutation.fill(~0ull - 1, out), std::out_of_range);
  }
}

TEST(Permutation, EveryOrderOfFewItemsIsEquallyLikely) {
  for (const std::uint64_t n : {2, 3, 4, 5, 6}) {
    std::map<std::vector<std::int64_t>, std::uint64_t> orders;
    std::uint64_t num_orders = 1;
    for (std::uint64_t i = 2; i <= n; ++i) {
      num_orders *= i;
    }
    for (std::uint64_t seed = 0; seed < 200 * num_orders; ++seed) {
      ++orders[all_images(Permutation(n, Key{seed}))];
    }
    ASSERT_EQ(orders.size(), num_orders);
    std::vector<std::uint64_t> counts;
    for (const auto& [order, count] : orders) {
      counts.push_back(count);
    }
    EXPECT_LT(std::abs(chi_square_sigmas(chi_square(counts), static_cast<double>(num_orders - 1))), 4) << n;
  }
}

// Over many keys each image of each index, and each pair of neighbouring images, comes equally often.
template <typename Make>
void check_images_and_neighbours(std::uint64_t n, Make make) {
  std::vector<std::uint64_t> images(n * n), steps(n - 1);
  const std::uint64_t num_keys = 3000;
  for (std::uint64_t seed = 0; seed < num_keys; ++seed) {
    const auto order = all_images(make(n, mtf::fold_in(Key{n}, seed)));
    for (std::uint64_t i = 0; i < n; ++i) {
      ++images[i * n + static_cast<std::uint64_t>(order[i])];
    }
    ++steps[(static_cast<std::uint64_t>(order[1] - order[0]) + n) % n - 1];
  }
  // Rows and columns of the table of images have fixed sums, which leaves (n - 1)^2 degrees of freedom.
  const auto freedom = static_cast<double>((n - 1) * (n - 1));
  EXPECT_LT(
      std::abs(chi_square_sigmas(chi_square(images) * static_cast<double>(n - 1) / static_cast<double>(n), freedom)),
      4.5)
      << n;
  if (n > 2) {
    EXPECT_LT(std::abs(chi_square_sigmas(chi_square(steps), static_cast<double>(n - 2))), 4.5) << n;
  }
}

TEST(Permutation, ImagesAndNeighboursAreUniformForSmallN) {
  for (std::uint64_t n = 2; n <= 64; ++n) {
    check_images_and_neighbours(n, [](std::uint64_t size, Key key) { return Permutation(size, key); });
  }
}

TEST(Permutation, ImagesAndNeighboursOfCompactOnesAreUniform) {
  for (const std::uint64_t n : {2, 3, 31, 32, 33, 34, 37, 48, 63, 64, 65, 66, 100, 127, 128, 129, 200, 255, 256, 257}) {
    check_images_and_neighbours(n, [](std::uint64_t size, Key key) { return Permutation::compact(size, key); });
  }
}

// Above the table: where an index goes, how far its neighbour goes from it, and how two keys differ, in 64 bins each.
TEST(Permutation, PositionsNeighboursAndKeysAreUniformForLargeN) {
  constexpr std::uint64_t kNumBins = 64;
  for (const std::uint64_t n : {4097ull, 5000ull, 8192ull, 8193ull, 65537ull, 1048577ull, 1ull << 32, 1ull << 62}) {
    std::vector<std::uint64_t> positions(kNumBins), neighbours(kNumBins), far(kNumBins), keys(kNumBins), lows(kNumBins);
    const auto bin = [&](std::uint64_t x) {
      return static_cast<std::uint64_t>(static_cast<unsigned __int128>(x) * kNumBins / n);
    };
    for (std::uint64_t seed = 0; seed < 60000; ++seed) {
      const Permutation permutation(n, Key{seed});
      const std::uint64_t i = seed % (n - 1), image = permutation(i);
      const std::uint64_t stride = std::uint64_t{1} << (seed % 12);
      ++positions[bin(image)];
      ++lows[image % kNumBins];
      ++neighbours[bin((permutation(i + 1) + n - image) % n)];
      ++far[bin((permutation((i + stride) % n) + n - image) % n)];
      ++keys[bin((Permutation(n, Key{seed + (1ull << 32)})(i) + n - image) % n)];
    }
    for (const auto* counts : {&positions, &neighbours, &far, &keys}) {
      EXPECT_LT(std::abs(chi_square_sigmas(chi_square(*counts), kNumBins - 1)), 4.5) << n;
    }
    if (n % kNumBins == 0) {
      EXPECT_LT(std::abs(chi_square_sigmas(chi_square(lows), kNumBins - 1)), 4.5) << n;
    }
  }
}

// Within one key: neighbouring images fill a grid of 16 x 16 evenly, and as many of them rise as fall.
TEST(Permutation, OneOrderLooksRandom) {
  for (const std::uint64_t n : {4099ull, 8192ull, 20000ull, 65537ull, 1ull << 20}) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      const auto images = all_images(Permutation(n, Key{seed}));
      for (const std::size_t lag : {1, 2, 64, 1024}) {
        std::vector<std::uint64_t> grid(256);
        std::int64_t rises = 0;
        for (std::size_t i = 0; i + lag < n; ++i) {
          const auto cell = [&](std::int64_t x) { return static_cast<std::uint64_t>(x) * 16 / n; };
          ++grid[cell(images[i]) * 16 + cell(images[i + lag])];
          rises += images[i + lag] > images[i];
        }
        EXPECT_LT(std::abs(chi_square_sigmas(chi_square(grid), 225)), 5) << n << " " << seed << " " << lag;
        const double half = static_cast<double>(n - lag) / 2;
        EXPECT_LT(std::abs(static_cast<double>(rises) - half), 5 * std::sqrt(half / 2))
            << n << " " << seed << " " << lag;
      }
    }
  }
}

TEST(FisherYates, IsWhatTheHeaderSays) {
  for (const std::size_t n : {0, 1, 2, 3, 255, 256, 257, 258, 4096, 65536}) {
    std::vector<std::uint16_t> items(n), expected(n);
    std::iota(items.begin(), items.end(), std::uint16_t{0});
    expected = items;
    mtf::fisher_yates(Key{11}, items);
    mtf::Stream stream{Key{11}};
    std::uint64_t pair = 0;
    bool high = false;
    const auto next = [&] {
      if (!high) {
        pair = stream.next();
      }
      high = !high;
      return static_cast<std::uint32_t>(high ? pair : pair >> 32);
    };
    for (std::size_t i = n; i-- > 1;) {
      std::uint64_t product = 0;
      do {
        product = std::uint64_t{next()} * (i + 1);
      } while (static_cast<std::uint32_t>(product) < (std::uint64_t{1} << 32) % (i + 1));
      std::swap(expected[i], expected[product >> 32]);
    }
    EXPECT_EQ(items, expected) << n;
  }
}

}  // namespace
