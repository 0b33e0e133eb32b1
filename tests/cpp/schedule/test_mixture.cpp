// Weights to integers: exact decimals, largest remainders, errors.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "mtf/error.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/integer_weights.hpp"

namespace mtf {
namespace {

using Weights = std::vector<std::uint32_t>;

Weights quantised(std::vector<double> weights) { return quantise(weights); }

TEST(Quantise, DecimalsAreKeptExactly) {
  EXPECT_EQ(quantised({0.7, 0.2, 0.1}), (Weights{7, 2, 1}));
  EXPECT_EQ(quantised({5, 3, 2}), (Weights{5, 3, 2}));
  EXPECT_EQ(quantised({10, 20, 0}), (Weights{1, 2, 0}));
  EXPECT_EQ(quantised({0.125, 0.875}), (Weights{1, 7}));
  EXPECT_EQ(quantised({1e-9, 1}), (Weights{1, 1'000'000'000}));
  EXPECT_EQ(quantised({3e12, 1e12}), (Weights{3, 1}));
  EXPECT_EQ(quantised({0.3}), (Weights{1}));
  EXPECT_EQ(quantised(std::vector<double>(10, 0.1)), Weights(10, 1));
}

TEST(Quantise, OthersAreApportionedToTwoToThe31) {
  const Weights thirds = quantised({1.0 / 3, 1.0 / 3, 1.0 / 3});
  EXPECT_EQ(thirds, (Weights{715'827'883, 715'827'883, 715'827'882}));
  EXPECT_EQ(quantised({1e-300, std::sqrt(2.0)}), (Weights{1, 2'147'483'647}));
  EXPECT_EQ(quantised({std::numeric_limits<double>::max(), std::numeric_limits<double>::denorm_min()}),
            (Weights{2'147'483'647, 1}));
  Stream stream(Key{1});
  for (const std::size_t n : {2, 7, 1'000, 100'000}) {
    std::vector<double> weights(n);
    for (double& weight : weights) {
      weight = std::exp(static_cast<double>(stream.bounded(1'000)) / 50.0);
    }
    const Weights integers = quantise(weights);
    EXPECT_EQ(std::accumulate(integers.begin(), integers.end(), std::uint64_t{0}), kMaxTotalWeight);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_GE(integers[i], 1U);
      if (integers[i] > 1) {
        ASSERT_NEAR(integers[i], weights[i] / sum * 0x1p31, static_cast<double>(n) / 100 + 2);
      }
    }
  }
}

TEST(Quantise, ManyTinyWeightsTakeTheirUnitsFromTheLargest) {
  std::vector<double> weights(1'000, 1e-200);
  weights[500] = 1.5;
  const Weights integers = quantise(weights);
  EXPECT_EQ(integers[500], kMaxTotalWeight - 999);
  EXPECT_EQ(integers[0], 1U);
}

TEST(Quantise, BadWeightsAreNamed) {
  const auto message = [](std::vector<double> weights) -> std::string {
    try {
      static_cast<void>(quantise(weights));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({1, -0.5}).find("weights[1] must be a finite number >= 0, got -0.5"), std::string::npos);
  EXPECT_NE(message({std::nan("")}).find("weights[0]"), std::string::npos);
  EXPECT_NE(message({1, 2, HUGE_VAL}).find("weights[2]"), std::string::npos);
  EXPECT_NE(message({0, 0}).find("all are 0"), std::string::npos);
  EXPECT_NE(message({}).find("got 0"), std::string::npos);
}

TEST(Apportion, SumsToTheTotalAndGivesTiesToTheFirst) {
  EXPECT_EQ(apportion(std::vector<std::uint64_t>{1, 1, 1}, 10), (Weights{4, 3, 3}));
  EXPECT_EQ(apportion(std::vector<std::uint64_t>{1, 1'000, 0}, 10), (Weights{1, 9, 0}));
  EXPECT_EQ(apportion(std::vector<std::uint64_t>{0, 5}, 10), (Weights{0, 10}));
}

}  // namespace
}  // namespace mtf
