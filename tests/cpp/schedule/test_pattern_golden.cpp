// The draws of every pattern held to a file: the same on every platform and in every later version.
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>
#include <sstream>
#include <string>

#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"
#include "pattern_checks.hpp"

namespace mtf {
namespace {

/// The first draws in full, a digest of the first 50,000.
template <Pattern P>
void write(std::ostream& out, const std::string& name, const P& pattern) {
  const std::size_t num_steps = std::min<std::uint64_t>(pattern.length(), 50'000);
  const test::Slots drawn = test::filled(pattern, 0, num_steps);
  std::uint64_t digest = 0xCBF29CE484222325;
  for (const std::int32_t slot : drawn) {
    digest = (digest ^ static_cast<std::uint64_t>(slot)) * 0x100000001B3;
  }
  out << name << ":";
  for (std::size_t step = 0; step < std::min<std::size_t>(num_steps, 40); ++step) {
    out << ' ' << drawn[step];
  }
  out << " digest " << digest << '\n';
}

template <class Make>
void write_weighted(std::ostream& out, const std::string& name, Make make) {
  std::vector<double> zipf(100);
  for (std::size_t i = 0; i < zipf.size(); ++i) {
    zipf[i] = 1.0 / static_cast<double>(i + 1);
  }
  const std::vector<std::vector<double>> mixtures{{0.7, 0.2, 0.1}, {1, 1, 1, 1}, {1.0 / 3, 0.5, 0.25}, zipf};
  const std::vector<std::uint64_t> none;
  for (std::size_t i = 0; i < mixtures.size(); ++i) {
    std::vector<std::uint64_t> limits(mixtures[i].size());
    std::iota(limits.begin(), limits.end(), 30U);
    for (const std::uint64_t burst : {1, 3}) {
      const std::string label = name + " mixture " + std::to_string(i) + " burst " + std::to_string(burst);
      write(out, label, make(quantise(mixtures[i]), burst, none));
      write(out, label + " limits", make(quantise(mixtures[i]), burst, limits));
    }
  }
}

TEST(PatternGolden, DrawsMatchTheFile) {
  std::ostringstream drawn;
  const std::vector<std::uint64_t> limits{3, 50, 20};
  write(drawn, "round robin 3", RoundRobin(3));
  write(drawn, "round robin 3 burst 2 limits", RoundRobin(3, 2, limits));
  write(drawn, "alternating 0 0 1 2 burst 2 limits", Alternating(test::Slots{0, 0, 1, 2}, 3, 2, limits));
  write(drawn, "sequential cycling", Sequential(limits, true));
  const Key key = fold_in(fold_in(Key{7}, "schedule"), 3);
  write_weighted(drawn, "even", [&](const auto& weights, std::uint64_t burst, const auto& limit) {
    return WeightedEven(weights, {}, burst, limit, key);
  });
  write_weighted(drawn, "shuffled", [&](const auto& weights, std::uint64_t burst, const auto& limit) {
    return WeightedShuffled(weights, {}, burst, limit, key);
  });
  write_weighted(drawn, "random", [&](const auto& weights, std::uint64_t burst, const auto& limit) {
    return WeightedRandom(weights, burst, limit, key);
  });
  std::ifstream file(MTF_TEST_DATA "/../../golden/patterns_v1.txt");
  const std::string expected{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(drawn.str(), expected);
}

}  // namespace
}  // namespace mtf
