#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <vector>

#include "corpora.hpp"
#include "mtf/error.hpp"
#include "mtf/tokens/packed_rows.hpp"

namespace {

using mtf::Key;
using mtf::LongDocuments;
using mtf::PackedRows;
using mtf::testing::Folder;

/// A corpus 0, 1, 2 ... in three files, with documents of `lengths`.
struct Documents {
  Folder folder;
  std::vector<std::int64_t> offsets{0};
  std::shared_ptr<const mtf::TokenCorpus> corpus;
  std::shared_ptr<const mtf::DocumentIndex> index;

  explicit Documents(const std::vector<std::size_t>& lengths) {
    for (const std::size_t length : lengths) {
      offsets.push_back(offsets.back() + static_cast<std::int64_t>(length));
    }
    const auto sum = static_cast<std::size_t>(offsets.back());
    corpus = mtf::testing::counting_corpus(folder, {sum / 4, sum / 4, sum - 2 * (sum / 4)});
    index = std::make_shared<const mtf::DocumentIndex>(offsets, sum);
  }
};

std::vector<std::size_t> some_lengths(std::size_t num, std::size_t most, std::uint64_t seed) {
  mtf::Stream stream{Key{seed}};
  std::vector<std::size_t> lengths(num);
  for (std::size_t& length : lengths) {
    length = stream.bounded(stream.bounded(4) == 0 ? most + 1 : most / 4 + 1);
  }
  return lengths;
}

std::vector<std::uint64_t> all_places(const mtf::RowSource& rows) {
  std::vector<std::uint64_t> places(rows.num_rows());
  std::iota(places.begin(), places.end(), std::uint64_t{0});
  return places;
}

/// Checks one pass against the documents alone, and gives each document's first row.
std::map<std::uint64_t, std::uint64_t> check_pass(const Documents& documents, const PackedRows& rows,
                                                  const mtf::PackingSpec& spec, std::uint64_t pass) {
  const auto read = mtf::testing::read_rows(rows, Key{4}, pass, all_places(rows), spec.length);
  std::map<std::uint64_t, std::uint64_t> times_seen, row_of_document;
  std::uint64_t supervised = 0;
  for (std::uint64_t k = 0; k < rows.num_rows(); ++k) {
    std::uint64_t at = 0;
    for (const mtf::TokenSpan& span : rows.trace(Key{4}, pass, k)) {
      const std::uint64_t document = documents.index->document_of(span.begin);
      row_of_document.try_emplace(document, k);
      EXPECT_LE(span.begin + span.count, documents.index->end(document));
      for (std::uint64_t t = 0; t < span.count; ++t, ++at) {
        const std::uint64_t token = span.begin + t;
        const bool counts = token + 1 < documents.index->end(document);
        EXPECT_EQ(read.input_ids[k][at], static_cast<std::int64_t>(token));
        EXPECT_EQ(read.labels[k][at], counts ? static_cast<std::int64_t>(token + 1) : mtf::kIgnoredLabel);
        EXPECT_EQ(read.loss_mask[k][at], counts);
        EXPECT_EQ(read.position_ids[k][at], static_cast<std::int32_t>(t));
        ++times_seen[token];
        supervised += counts ? 1 : 0;
      }
    }
    for (std::uint64_t t = 0; at < spec.length; ++t, ++at) {
      EXPECT_EQ(read.input_ids[k][at], spec.pad_token);
      EXPECT_EQ(read.labels[k][at], mtf::kIgnoredLabel);
      EXPECT_FALSE(read.loss_mask[k][at]);
      EXPECT_EQ(read.position_ids[k][at], static_cast<std::int32_t>(t));
    }
  }
  std::uint64_t kept = 0;
  for (std::uint64_t d = 0; d < documents.index->num_documents(); ++d) {
    std::uint64_t wanted = documents.index->length(d);
    if (wanted > spec.length && spec.long_documents == LongDocuments::drop) {
      wanted = 0;
    }
    if (spec.long_documents == LongDocuments::truncate) {
      wanted = std::min(wanted, spec.length);
    }
    for (std::uint64_t t = 0; t < documents.index->length(d); ++t) {
      EXPECT_EQ(times_seen[documents.index->begin(d) + t], t < wanted ? 1u : 0u) << d << " " << t;
    }
    kept += wanted;
  }
  EXPECT_EQ(rows.pieces().num_tokens(), kept);
  EXPECT_EQ(rows.pieces().num_dropped_tokens(), documents.corpus->num_tokens() - kept);
  EXPECT_EQ(rows.pieces().num_supervised(), supervised);
  return row_of_document;
}

TEST(PackedRows, HoldEachDocumentOnceInEveryPass) {
  for (const LongDocuments kind : {LongDocuments::split, LongDocuments::truncate, LongDocuments::drop}) {
    for (const std::size_t length : {1u, 2u, 7u, 32u, 100u}) {
      const Documents documents(some_lengths(120, 3 * length, length));
      const mtf::PackingSpec spec{.length = length, .long_documents = kind, .pad_token = -5};
      const PackedRows rows(documents.corpus, documents.index, spec);
      for (std::uint64_t pass = 0; pass < 3; ++pass) {
        check_pass(documents, rows, spec, pass);
        if (::testing::Test::HasFailure()) {
          return;
        }
      }
    }
  }
}

TEST(PackedRows, GiveDocumentsOtherCompanyInEveryPass) {
  const Documents documents(some_lengths(20000, 60, 1));
  const mtf::PackingSpec spec{.length = 64};
  const PackedRows rows(documents.corpus, documents.index, spec);
  std::set<std::pair<std::uint64_t, std::uint64_t>> pairs[2];
  std::size_t num_pairs = 0;
  for (const std::uint64_t pass : {0, 1}) {
    for (std::uint64_t place = 0; place < rows.num_rows(); ++place) {
      const auto spans = rows.trace(Key{4}, pass, place);
      for (std::size_t a = 0; a < spans.size(); ++a) {
        for (std::size_t b = a + 1; b < spans.size(); ++b) {
          pairs[pass].insert(
              std::minmax(documents.index->document_of(spans[a].begin), documents.index->document_of(spans[b].begin)));
        }
      }
    }
    num_pairs = pairs[pass].size();
  }
  std::size_t shared = 0;
  for (const auto& pair : pairs[0]) {
    shared += pairs[1].count(pair);
  }
  EXPECT_LT(shared, num_pairs / 10) << shared << " of " << num_pairs;
}

TEST(PackedRows, FindIsTheInverseOfTrace) {
  for (const LongDocuments kind : {LongDocuments::split, LongDocuments::truncate, LongDocuments::drop}) {
    const Documents documents(some_lengths(5000, 90, 7));
    const PackedRows rows(documents.corpus, documents.index, {.length = 40, .long_documents = kind});
    for (std::uint64_t pass = 0; pass < 2; ++pass) {
      std::map<std::uint64_t, std::set<std::uint64_t>> places;
      for (std::uint64_t place = 0; place < rows.num_rows(); ++place) {
        for (const mtf::TokenSpan& span : rows.trace(Key{4}, pass, place)) {
          places[documents.index->document_of(span.begin)].insert(place);
          const auto found = rows.find(Key{4}, pass, span.begin, span.begin + span.count);
          ASSERT_EQ(found, std::vector{place});
        }
      }
      for (std::uint64_t d = 0; d < documents.index->num_documents(); ++d) {
        const auto found = rows.find(Key{4}, pass, documents.index->begin(d), documents.index->end(d));
        ASSERT_EQ(std::set<std::uint64_t>(found.begin(), found.end()), places[d]) << d;
      }
    }
  }
}

TEST(PackedRows, RefuseWhatCannotBePacked) {
  const Documents documents({5, 6});
  EXPECT_THROW(PackedRows(documents.corpus, documents.index, {.length = 4, .long_documents = LongDocuments::drop}),
               mtf::ConfigError);
  EXPECT_THROW(PackedRows(documents.corpus, documents.index, {.length = 0}), mtf::ConfigError);
}

}  // namespace
