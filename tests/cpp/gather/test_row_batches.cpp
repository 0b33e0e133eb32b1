#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/gather/cu_seqlens.hpp"
#include "mtf/gather/row_batches.hpp"

namespace {

/// Row j of pass p holds 100 p + j, and positions that begin anew after each `j % 3 + 1` items.
class NumberRows : public mtf::RowSource {
 public:
  NumberRows() {
    fields_.push_back({.name = "number", .dtype = "int64", .item_bytes = 8, .shape = {}, .counts_positions = false});
    fields_.push_back({.name = "positions", .dtype = "int32", .item_bytes = 4, .shape = {6}, .counts_positions = true});
  }
  [[nodiscard]] std::uint64_t num_rows() const noexcept override { return 10; }
  [[nodiscard]] std::span<const mtf::RowField> fields() const noexcept override { return fields_; }
  void find_rows(mtf::Key, std::uint64_t, std::span<const std::uint64_t> places,
                 std::span<std::uint64_t> rows) const override {
    std::ranges::copy(places, rows.begin());
  }
  [[nodiscard]] std::uint64_t place_of(mtf::Key, std::uint64_t, std::uint64_t row) const override { return row; }
  void write_rows(mtf::Key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                  std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const override {
    for (std::size_t k = 0; k < rows.size(); ++k) {
      reinterpret_cast<std::int64_t*>(buffers[0])[slots[k]] = static_cast<std::int64_t>(100 * pass + rows[k]);
      for (std::uint64_t t = 0; t < 6; ++t) {
        reinterpret_cast<std::int32_t*>(buffers[1])[slots[k] * 6 + t] =
            static_cast<std::int32_t>(t % (rows[k] % 3 + 1));
      }
    }
  }

 private:
  std::vector<mtf::RowField> fields_;
};

std::vector<std::int64_t> numbers(const mtf::RowBatch& batch) {
  const auto* const first = reinterpret_cast<const std::int64_t*>(batch.buffers[0].data());
  return {first, first + batch.num_rows};
}

TEST(RowBatches, DivideEachBatchAmongRanks) {
  const auto rows = std::make_shared<const NumberRows>();
  const auto pool = mtf::BufferPool::create();
  for (const std::uint64_t batch_size : {1, 3, 4, 10, 12}) {
    for (const bool drop_last : {false, true}) {
      for (const std::uint32_t world_size : {1u, 2u, 3u}) {
        for (std::uint64_t batch = 0;; ++batch) {
          std::vector<std::int64_t> global;
          std::uint64_t num_batches = 0;
          for (std::uint32_t rank = 0; rank < world_size; ++rank) {
            mtf::RowBatches source(
                rows, {.batch_size = batch_size, .drop_last = drop_last, .rank = rank, .world_size = world_size}, pool);
            num_batches = source.num_batches();
            if (batch == num_batches) {
              EXPECT_THROW(static_cast<void>(source.fetch(2, batch)), std::out_of_range);
              continue;
            }
            const auto payload = source.fetch(2, batch);
            const auto& made = static_cast<const mtf::RowBatch&>(*payload);
            EXPECT_LE(payload->num_bytes(), 2 * source.max_batch_bytes());
            const auto size = std::min<std::uint64_t>(batch_size, 10 - batch * batch_size);
            if (mtf::shard(size, rank, world_size).size() == 0) {
              EXPECT_EQ(numbers(made), std::vector<std::int64_t>{200 + static_cast<std::int64_t>(batch * batch_size)});
            } else {
              const auto part = numbers(made);
              global.insert(global.end(), part.begin(), part.end());
            }
          }
          if (batch == num_batches) {
            EXPECT_EQ(num_batches, drop_last ? 10 / batch_size : (10 + batch_size - 1) / batch_size);
            break;
          }
          std::vector<std::int64_t> expected(std::min<std::uint64_t>(batch_size, 10 - batch * batch_size));
          std::iota(expected.begin(), expected.end(), static_cast<std::int64_t>(200 + batch * batch_size));
          EXPECT_EQ(global, expected);
        }
      }
    }
  }
}

TEST(RowBatches, SayWhereDocumentsBegin) {
  mtf::RowBatches source(std::make_shared<const NumberRows>(), {.batch_size = 3}, mtf::BufferPool::create());
  const auto payload = source.fetch(0, 0);
  const auto& batch = static_cast<const mtf::RowBatch&>(*payload);
  const auto* const first = reinterpret_cast<const std::int32_t*>(batch.cu_seqlens.data());
  EXPECT_EQ(std::vector<std::int32_t>(first, first + batch.num_cu_seqlens),
            (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18}));
}

TEST(RowBatches, RefuseWhatHasNoMeaning) {
  const auto rows = std::make_shared<const NumberRows>();
  const auto pool = mtf::BufferPool::create();
  EXPECT_THROW(mtf::RowBatches(rows, {.batch_size = 0}, pool), mtf::ConfigError);
  EXPECT_THROW(mtf::RowBatches(rows, {.rank = 2, .world_size = 2}, pool), mtf::ConfigError);
}

TEST(CuSeqlens, FindZerosAtEveryLength) {
  for (const mtf::Simd simd : {mtf::Simd::portable, mtf::best_simd()}) {
    for (std::size_t size = 0; size < 300; ++size) {
      std::vector<std::int32_t> positions(size, 1), out(size + 1), expected;
      for (std::size_t i = 0; i < size; ++i) {
        if (i == 0 || i * i % 53 == 4 || i == size - 1) {
          positions[i] = 0;
          expected.push_back(static_cast<std::int32_t>(i));
        }
      }
      expected.push_back(static_cast<std::int32_t>(size));
      out.resize(mtf::fill_cu_seqlens(std::span<const std::int32_t>(positions), out.data(), simd));
      ASSERT_EQ(out, expected);
    }
  }
}

TEST(CuSeqlens, FindEveryDocumentOfPositionsThatCount) {
  for (const mtf::Simd simd : {mtf::Simd::portable, mtf::best_simd()}) {
    for (std::size_t first = 1; first < 140; first += 3) {
      std::vector<std::int32_t> narrow, expected;
      for (std::size_t length = first; narrow.size() < 1000; length = length * 7 % 139 + 1) {
        expected.push_back(static_cast<std::int32_t>(narrow.size()));
        for (std::size_t i = 0; i < length; ++i) {
          narrow.push_back(static_cast<std::int32_t>(i));
        }
      }
      expected.push_back(static_cast<std::int32_t>(narrow.size()));
      const std::vector<std::int64_t> wide(narrow.begin(), narrow.end());
      std::vector<std::int32_t> out(narrow.size() + 1);
      out.resize(mtf::fill_cu_seqlens(std::span<const std::int32_t>(narrow), out.data(), simd));
      ASSERT_EQ(out, expected);
      out.resize(wide.size() + 1);
      out.resize(mtf::fill_cu_seqlens(std::span<const std::int64_t>(wide), out.data(), simd));
      ASSERT_EQ(out, expected);
    }
  }
}

TEST(CuSeqlens, LookAtEveryItemWherePositionsDontLeadToAZero) {
  std::vector<std::int32_t> out(201);
  for (const std::int32_t last : {-1, 5, 300}) {  // before its document, in its middle, before the first item
    std::vector<std::int32_t> positions(200, 1);
    positions[0] = positions[100] = 0;
    positions[199] = last;
    const std::size_t num = mtf::fill_cu_seqlens(std::span<const std::int32_t>(positions), out.data());
    EXPECT_EQ((std::vector<std::int32_t>(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(num))),
              (std::vector<std::int32_t>{0, 100, 200}));
  }
}

}  // namespace
