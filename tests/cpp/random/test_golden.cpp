// Keys, words, orders and draws are part of the state format: what a released version gave, every later one gives.
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "mtf/random/alias_table.hpp"
#include "mtf/random/key.hpp"
#include "mtf/random/permutation.hpp"
#include "mtf/random/philox_fill.hpp"

namespace {

template <typename T>
std::vector<T> read_all(std::istream& in) {
  std::vector<T> values;
  for (T value; in >> value;) {
    values.push_back(value);
  }
  return values;
}

TEST(Golden, RandomNumbersAreThoseOfEveryReleasedVersion) {
  std::ifstream file(MTF_TEST_DATA "/../../golden/random_v1.txt");
  ASSERT_TRUE(file);
  int num_lines = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') {
      continue;
    }
    SCOPED_TRACE(line);
    std::istringstream fields(line);
    std::string kind;
    std::uint64_t key = 0;
    fields >> kind >> key;
    ++num_lines;
    if (kind == "fold_in") {
      std::uint64_t data = 0, expected = 0;
      fields >> data >> expected;
      EXPECT_EQ(mtf::fold_in(mtf::Key{key}, data).value, expected);
    } else if (kind == "fold_name") {
      std::string name;
      std::uint64_t expected = 0;
      fields >> name >> expected;
      EXPECT_EQ(mtf::fold_in(mtf::Key{key}, name).value, expected);
    } else if (kind == "words") {
      std::uint64_t begin = 0;
      fields >> begin;
      const auto expected = read_all<std::uint32_t>(fields);
      std::vector<std::uint32_t> words(expected.size());
      mtf::philox_fill(mtf::Key{key}, begin, words);
      EXPECT_EQ(words, expected);
    } else if (kind == "permutation") {
      std::uint64_t n = 0, begin = 0;
      fields >> n >> begin;
      const auto expected = read_all<std::int64_t>(fields);
      std::vector<std::int64_t> images(expected.size());
      mtf::Permutation(n, mtf::Key{key}).fill(begin, images);
      EXPECT_EQ(images, expected);
    } else if (kind == "alias") {
      std::size_t n = 0;
      std::uint64_t begin = 0;
      fields >> n >> begin;
      std::vector<std::uint32_t> weights(n);
      for (std::uint32_t& weight : weights) {
        fields >> weight;
      }
      const auto expected = read_all<std::int32_t>(fields);
      std::vector<std::int32_t> draws(expected.size());
      mtf::AliasTable(weights).fill(mtf::Key{key}, begin, draws);
      EXPECT_EQ(draws, expected);
    } else {
      ADD_FAILURE() << "unknown kind " << kind;
    }
  }
  EXPECT_GE(num_lines, 30);
}

}  // namespace
