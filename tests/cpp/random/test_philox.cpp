#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "mtf/random/philox.hpp"

namespace {

TEST(Philox, GivesThePublishedAnswers) {
  std::ifstream file(MTF_TEST_DATA "/philox_vectors.txt");
  ASSERT_TRUE(file) << "the vectors lie beside this file";
  int num_vectors = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') {
      continue;
    }
    std::istringstream words(line);
    words >> std::hex;
    mtf::PhiloxCounter counter{}, expected{};
    mtf::PhiloxKey key{};
    for (auto& word : counter) {
      words >> word;
    }
    for (auto& word : key) {
      words >> word;
    }
    for (auto& word : expected) {
      words >> word;
    }
    ASSERT_TRUE(words) << line;
    EXPECT_EQ(mtf::philox4x32(counter, key), expected) << line;
    ++num_vectors;
  }
  EXPECT_EQ(num_vectors, 3);
}

}  // namespace
