#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <thread>
#include <vector>

#include "corpora.hpp"
#include "mtf/error.hpp"
#include "mtf/tokens/documents.hpp"
#include "mtf/tokens/token_copy.hpp"

namespace {

using mtf::TokenType;
using mtf::testing::Folder;

std::vector<std::int64_t> read(const mtf::TokenCorpus& corpus, std::uint64_t begin, std::uint64_t count) {
  std::vector<std::int64_t> tokens(count);
  mtf::TokenReader reader(corpus);
  reader.for_runs(begin, count, [&](const mtf::TokenRun& run, std::uint64_t done) {
    mtf::widen_tokens(corpus.type(), run.tokens, run.count, tokens.data() + done);
  });
  return tokens;
}

TEST(TokenCopy, WidensEveryTypeAtEveryLengthAndAlignment) {
  const auto check = []<typename T>(TokenType type, T) {
    ASSERT_EQ(mtf::item_bytes(type), sizeof(T));
    std::vector<T> tokens(200);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<T>(i % 5 == 0   ? std::numeric_limits<T>::max()
                                 : i % 5 == 1 ? std::numeric_limits<T>::min()
                                              : static_cast<T>(i * 2654435761u));
    }
    std::vector<std::byte> shifted(tokens.size() * sizeof(T) + 1);
    std::memcpy(shifted.data() + 1, tokens.data(), tokens.size() * sizeof(T));
    for (const mtf::Simd simd : {mtf::Simd::portable, mtf::best_simd()}) {
      for (std::size_t count = 0; count <= tokens.size(); ++count) {
        std::vector<std::int64_t> wide(count + 1, -7);
        mtf::widen_tokens(type, shifted.data() + 1, count, wide.data(), simd);
        for (std::size_t i = 0; i < count; ++i) {
          ASSERT_EQ(wide[i], static_cast<std::int64_t>(tokens[i]));
        }
        ASSERT_EQ(wide[count], -7);
      }
    }
  };
  for (std::uint8_t t = 0; t < 8; ++t) {
    mtf::with_token_type(static_cast<TokenType>(t), [&](auto zero) { check(static_cast<TokenType>(t), zero); });
  }
}

TEST(TokenCopy, FindsATokenAtEveryPlace) {
  for (const mtf::Simd simd : {mtf::Simd::portable, mtf::best_simd()}) {
    for (std::size_t count = 0; count < 200; ++count) {
      std::vector<std::uint16_t> tokens(count);
      std::vector<std::uint64_t> expected, found;
      for (std::size_t i = 0; i < count; ++i) {
        tokens[i] = i * i % 7 == 2 || i == count - 1 ? 65535 : 3;
        if (tokens[i] == 65535) {
          expected.push_back(i + 10);
        }
      }
      const auto* const bytes = reinterpret_cast<const std::byte*>(tokens.data());
      mtf::find_token(TokenType::uint16, bytes, count, 65535, 10, found, simd);
      ASSERT_EQ(found, expected);
      mtf::find_token(TokenType::uint16, bytes, count, -1, 10, found, simd);  // no uint16, whatever its bits
      mtf::find_token(TokenType::uint16, bytes, count, 65536 + 3, 10, found, simd);
      ASSERT_EQ(found, expected);
    }
  }
}

TEST(TokenCorpus, JoinsFilesOfAnySizeInOrder) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, {5, 0, 1, 1, 300, 0, 7});
  ASSERT_EQ(corpus->num_tokens(), 314u);
  for (std::uint64_t begin = 0; begin < 314; begin += 3) {
    for (const std::uint64_t count : {1u, 2u, 9u, 305u}) {
      if (begin + count > 314) {
        continue;
      }
      std::vector<std::int64_t> expected(count);
      std::iota(expected.begin(), expected.end(), static_cast<std::int64_t>(begin));
      ASSERT_EQ(read(*corpus, begin, count), expected);
    }
  }
  for (std::uint64_t token = 0; token < 314; ++token) {
    const std::size_t part = corpus->part_of(token);
    EXPECT_LE(corpus->part_begins()[part], token);
    EXPECT_GT(corpus->part_begins()[part + 1], token);
  }
}

TEST(TokenCorpus, HoldsNoMoreMapsThanAllowedAndServesManyThreads) {
  const Folder folder;
  const auto corpus = mtf::testing::counting_corpus(folder, std::vector<std::size_t>(50, 20), 3);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t k = 0; k < 500; ++k) {
        const std::uint64_t begin = (k * 37 + t * 101) % 900;
        const std::vector<std::int64_t> tokens = read(*corpus, begin, 45);
        for (std::uint64_t i = 0; i < tokens.size(); ++i) {
          ASSERT_EQ(tokens[i], static_cast<std::int64_t>(begin + i));
        }
        ASSERT_LE(corpus->maps().num_open(), 3u);
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(corpus->maps().num_open(), 3u);
}

TEST(TokenCorpus, NamesAFileThatIsGoneOrWasCut) {
  const Folder folder;
  const mtf::TokenPart first = folder.write<std::uint16_t>("first", {1, 2, 3});
  const mtf::TokenPart second = folder.write<std::uint16_t>("second", {4, 5, 6});
  const mtf::TokenCorpus corpus({first, second}, TokenType::uint16, 8);
  std::filesystem::resize_file(second.path, 4);
  EXPECT_EQ(read(corpus, 0, 3), (std::vector<std::int64_t>{1, 2, 3}));
  try {
    static_cast<void>(read(corpus, 2, 3));
    FAIL() << "a cut file was read";
  } catch (const mtf::FileError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with(second.path + ": has 4 bytes now, but had 6")) << error.what();
  }
  std::filesystem::remove(second.path);
  EXPECT_THROW(static_cast<void>(read(corpus, 2, 3)), mtf::FileError);
  EXPECT_THROW(mtf::TokenCorpus({first}, TokenType::uint16, 0), mtf::ConfigError);
}

TEST(DocumentIndex, FindsTheDocumentOfEveryToken) {
  const std::vector<std::vector<std::int64_t>> cases{
      {0, 1}, {0, 10}, {0, 0, 0, 3, 3, 4, 90, 90}, {0, 1, 2, 3, 4, 5, 6, 1000}, {0, 993, 994, 995, 996, 997, 1000}};
  for (const auto& offsets : cases) {
    const auto num_tokens = static_cast<std::uint64_t>(offsets.back());
    const mtf::DocumentIndex index(offsets, num_tokens);
    for (std::uint64_t token = 0; token < num_tokens; ++token) {
      const std::uint64_t document = index.document_of(token);
      ASSERT_LE(index.begin(document), token);
      ASSERT_GT(index.end(document), token);
    }
  }
}

TEST(DocumentIndex, RefusesOffsetsThatAreNone) {
  const std::vector<std::int64_t> none, late{1, 3}, falling{0, 2, 1, 3}, shorter{0, 2};
  for (const auto& offsets : {none, late, falling, shorter}) {
    EXPECT_THROW(mtf::DocumentIndex(offsets, 3), mtf::ConfigError);
  }
}

TEST(ScanDocuments, EndsDocumentsAtEndTokensAndParts) {
  const Folder folder;
  const auto parts = {folder.write<std::int32_t>("a", {1, 0, 2, 3, 0}), folder.write<std::int32_t>("b", {5, 5}),
                      folder.write<std::int32_t>("c", {0, 0, 7})};
  const mtf::TokenCorpus corpus(parts, TokenType::int32, 4);
  EXPECT_EQ(mtf::scan_documents(corpus, 0), (std::vector<std::int64_t>{0, 2, 5, 7, 8, 9, 10}));
  EXPECT_EQ(mtf::scan_documents(corpus, 99), (std::vector<std::int64_t>{0, 5, 7, 10}));
}

}  // namespace
