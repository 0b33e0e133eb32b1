#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>
#include <vector>

#include "corpora.hpp"
#include "mtf/error.hpp"
#include "mtf/tokens/window_rows.hpp"

namespace {

using mtf::Key;
using mtf::WindowRows;
using mtf::testing::Folder;

std::vector<std::uint64_t> all_places(const mtf::RowSource& rows) {
  std::vector<std::uint64_t> places(rows.num_rows());
  std::iota(places.begin(), places.end(), std::uint64_t{0});
  return places;
}

TEST(WindowRows, HoldTheTokensTheySayForEveryCorpusAndLength) {
  const Folder folder;
  for (std::size_t num_tokens = 2; num_tokens <= 40; ++num_tokens) {
    const auto corpus = mtf::testing::counting_corpus(folder, {num_tokens / 3, num_tokens - num_tokens / 3});
    for (std::uint64_t length = 1; length < num_tokens; ++length) {
      for (const bool moving : {false, true}) {
        const mtf::WindowSpec spec{.length = length, .moving = moving, .boundaries = false, .end_token = {}};
        if (num_tokens < (moving ? 2 * length : length + 1)) {
          EXPECT_THROW(WindowRows(corpus, nullptr, spec), mtf::ConfigError);
          continue;
        }
        const WindowRows rows(corpus, nullptr, spec);
        for (std::uint64_t pass = 0; pass < 3; ++pass) {
          const auto read = mtf::testing::read_rows(rows, Key{1}, pass, all_places(rows), length);
          std::set<std::int64_t> begins;
          for (std::size_t k = 0; k < rows.num_rows(); ++k) {
            const auto spans = rows.trace(Key{1}, pass, k);
            ASSERT_EQ(spans.size(), 1u);
            ASSERT_EQ(spans[0].count, length);
            for (std::uint64_t t = 0; t < length; ++t) {
              ASSERT_EQ(read.input_ids[k][t], static_cast<std::int64_t>(spans[0].begin + t));
              ASSERT_EQ(read.labels[k][t], read.input_ids[k][t] + 1);
            }
            ASSERT_EQ((spans[0].begin - rows.offset(Key{1}, pass)) % length, 0u);
            begins.insert(read.input_ids[k][0]);
          }
          ASSERT_EQ(begins.size(), rows.num_rows());
          if (!moving) {
            ASSERT_EQ(rows.offset(Key{1}, pass), 0u);
            ASSERT_EQ(rows.num_rows(), (num_tokens - 1) / length);
          }
        }
      }
    }
  }
}

TEST(WindowRows, MoveSoThatEveryTokenIsAnInputOrALabelInSomePass) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, {57});
  const WindowRows rows(corpus, nullptr, {.length = 10, .boundaries = false, .end_token = {}});
  std::set<std::uint64_t> offsets, inputs;
  for (std::uint64_t pass = 0; pass < 400; ++pass) {
    const std::uint64_t offset = rows.offset(Key{5}, pass);
    offsets.insert(offset);
    for (std::uint64_t t = 0; t < rows.num_rows() * 10; ++t) {
      inputs.insert(offset + t);
    }
  }
  EXPECT_EQ(rows.num_rows(), 4u);
  EXPECT_EQ(offsets.size(), 17u);  // [0, 56 - 40]
  EXPECT_EQ(inputs.size(), 56u);   // the last token is only a label
}

/// What a row should be, from the documents' beginnings alone.
void check_row(const mtf::testing::Rows& read, std::size_t k, std::uint64_t begin, std::uint64_t length,
               const std::set<std::uint64_t>& document_begins) {
  std::int32_t position = 0;
  for (std::uint64_t t = 0; t < length; ++t) {
    if (t > 0) {
      position = document_begins.contains(begin + t) ? 0 : position + 1;
    }
    const bool counts = !document_begins.contains(begin + t + 1);
    ASSERT_EQ(read.position_ids[k][t], position) << begin << " " << t;
    ASSERT_EQ(read.loss_mask[k][t], counts);
    ASSERT_EQ(read.labels[k][t], counts ? static_cast<std::int64_t>(begin + t + 1) : mtf::kIgnoredLabel);
  }
}

TEST(WindowRows, CutRowsWhereDocumentsOrFilesEnd) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, {4, 30, 1, 1, 164});
  std::vector<std::int64_t> offsets{0, 1, 2, 4, 4, 13, 14, 34, 35, 36, 36, 70, 71, 72, 120, 200};
  const std::set<std::uint64_t> begins(offsets.begin(), offsets.end());
  const auto index = std::make_shared<const mtf::DocumentIndex>(offsets, 200);
  for (std::uint64_t length = 1; length <= 100; ++length) {
    const WindowRows rows(corpus, index, {.length = length, .end_token = {}});
    for (std::uint64_t pass = 0; pass < 3; ++pass) {
      const auto read = mtf::testing::read_rows(rows, Key{3}, pass, all_places(rows), length);
      for (std::size_t k = 0; k < rows.num_rows(); ++k) {
        check_row(read, k, rows.trace(Key{3}, pass, k)[0].begin, length, begins);
      }
    }
  }
}

TEST(WindowRows, FindEndTokensDuringTheCopy) {
  const Folder folder;
  std::vector<std::int64_t> first(61, 1), second(80, 1);
  std::set<std::uint64_t> begins{0, 61};
  for (const std::size_t at : {0u, 1u, 7u, 30u, 60u}) {
    first[at] = 9;
    begins.insert(at + 1);
  }
  for (const std::size_t at : {5u, 40u, 41u}) {
    second[at] = 9;
    begins.insert(61 + at + 1);
  }
  const auto corpus = std::make_shared<const mtf::TokenCorpus>(
      std::vector{folder.write<std::uint16_t>("a", first), folder.write<std::uint16_t>("b", second)},
      mtf::TokenType::uint16, 4);
  std::vector<std::int64_t> offsets = mtf::scan_documents(*corpus, 9);
  const auto index = std::make_shared<const mtf::DocumentIndex>(offsets, 141);
  for (std::uint64_t length = 1; length <= 70; ++length) {
    const WindowRows scanned(corpus, nullptr, {.length = length, .end_token = 9});
    const WindowRows indexed(corpus, index, {.length = length, .end_token = {}});
    for (std::uint64_t pass = 0; pass < 2; ++pass) {
      const auto a = mtf::testing::read_rows(scanned, Key{3}, pass, all_places(scanned), length);
      const auto b = mtf::testing::read_rows(indexed, Key{3}, pass, all_places(indexed), length);
      ASSERT_EQ(a.input_ids, b.input_ids);
      ASSERT_EQ(a.labels, b.labels);
      ASSERT_EQ(a.position_ids, b.position_ids);
      ASSERT_EQ(a.loss_mask, b.loss_mask);
    }
  }
}

TEST(WindowRows, FindIsTheInverseOfTrace) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, {500, 500});
  for (const bool shuffle : {false, true}) {
    const WindowRows rows(corpus, nullptr, {.length = 7, .boundaries = false, .shuffle = shuffle, .end_token = {}});
    for (std::uint64_t pass = 0; pass < 3; ++pass) {
      for (std::uint64_t place = 0; place < rows.num_rows(); ++place) {
        const auto span = rows.trace(Key{8}, pass, place)[0];
        ASSERT_EQ(rows.find(Key{8}, pass, span.begin, span.begin + span.count), (std::vector{place}));
        ASSERT_EQ(rows.find(Key{8}, pass, span.begin + 6, span.begin + 7), (std::vector{place}));
      }
      ASSERT_EQ(rows.find(Key{8}, pass, 0, 1000).size(), rows.num_rows());
      ASSERT_TRUE(rows.find(Key{8}, pass, 999, 1000).empty());
      ASSERT_TRUE(rows.find(Key{8}, pass, 5, 5).empty());
    }
    EXPECT_THROW(static_cast<void>(rows.trace(Key{8}, 0, rows.num_rows())), std::out_of_range);
  }
}

TEST(WindowRows, RefuseWhatHasNoMeaning) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, {100});
  EXPECT_THROW(WindowRows(corpus, nullptr, {.length = 0, .boundaries = false, .end_token = {}}), mtf::ConfigError);
  EXPECT_THROW(WindowRows(corpus, nullptr, {.length = 1ull << 31, .boundaries = false, .end_token = {}}),
               mtf::ConfigError);
  EXPECT_THROW(WindowRows(corpus, nullptr, {.length = 10, .boundaries = true, .end_token = {}}), mtf::ConfigError);
}

}  // namespace
