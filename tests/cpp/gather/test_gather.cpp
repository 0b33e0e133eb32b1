#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "mtf/error.hpp"
#include "mtf/gather/gather.hpp"
#include "mtf/random/key.hpp"

namespace {

using mtf::ArrayView;

std::vector<std::byte> bytes(std::size_t size) {
  std::vector<std::byte> result(size);
  for (std::size_t i = 0; i < size; ++i) {
    result[i] = static_cast<std::byte>((i * 131 + i / 251) & 0xFF);
  }
  return result;
}

/// What a gather must give, item by item, from the definition of strides.
std::vector<std::byte> expected(const std::byte* data, std::span<const std::uint64_t> shape,
                                std::span<const std::ptrdiff_t> strides, std::size_t item,
                                std::span<const std::int64_t> rows) {
  std::vector<std::byte> out;
  std::uint64_t items = 1;
  for (std::size_t d = 1; d < shape.size(); ++d) {
    items *= shape[d];
  }
  for (const std::int64_t row : rows) {
    for (std::uint64_t k = 0; k < items; ++k) {
      const std::byte* at = data + row * strides[0];
      std::uint64_t rest = k;
      for (std::size_t d = shape.size(); d-- > 1;) {
        at += static_cast<std::ptrdiff_t>(rest % shape[d]) * strides[d];
        rest /= shape[d];
      }
      out.insert(out.end(), at, at + item);
    }
  }
  return out;
}

TEST(Gather, CopiesRowsOfEverySize) {
  constexpr std::uint64_t kRows = 37;
  std::vector<std::size_t> sizes(140);
  std::iota(sizes.begin(), sizes.end(), 0);
  sizes.insert(sizes.end(), {255, 256, 257, 1000, 1024, 4096, 5001});
  for (const std::size_t size : sizes) {
    const auto data = bytes(kRows * size + 1);
    const std::uint64_t shape[] = {kRows, size};
    const std::ptrdiff_t strides[] = {static_cast<std::ptrdiff_t>(size), 1};
    const ArrayView view = mtf::view_of(data.data(), shape, strides, 1);
    EXPECT_TRUE(view.axes.empty());
    mtf::Stream random(mtf::Key{size});
    for (const std::size_t count : {0, 1, 2, 15, 16, 17, 100}) {
      std::vector<std::int64_t> rows(count);
      for (auto& row : rows) {
        row = static_cast<std::int64_t>(random.bounded(kRows));
      }
      std::vector<std::byte> out(count * size);
      mtf::gather(view, rows, out.data());
      ASSERT_EQ(out, expected(data.data(), shape, strides, 1, rows)) << size << " x " << count;
    }
    std::vector<std::int64_t> all(kRows - 5);
    std::iota(all.begin(), all.end(), 3);
    std::vector<std::byte> out(all.size() * size);
    mtf::gather_range(view, 3, all.size(), out.data());
    ASSERT_EQ(out, expected(data.data(), shape, strides, 1, all)) << size;
  }
}

TEST(Gather, FollowsAnyStrides) {
  // Every choice of strides over a small cube: dense, padded, transposed, broadcast, reversed.
  const auto data = bytes(4096);
  const std::byte* middle = data.data() + 2048;
  const std::vector<std::int64_t> rows = {2, 0, 1, 1};
  const std::ptrdiff_t choices[] = {-60, -8, 0, 2, 4, 6, 8, 24, 60, 100};
  int num_dense = 0;
  for (const auto a : choices) {
    for (const auto b : choices) {
      for (const auto c : choices) {
        for (const auto d : choices) {
          const std::uint64_t shape[] = {3, 2, 3, 4};
          const std::ptrdiff_t strides[] = {a, b, c, d};
          const ArrayView view = mtf::view_of(middle, shape, strides, 2);
          num_dense += view.axes.empty();
          std::vector<std::byte> out(rows.size() * view.row_bytes);
          mtf::gather(view, rows, out.data());
          ASSERT_EQ(out, expected(middle, shape, strides, 2, rows)) << a << ' ' << b << ' ' << c << ' ' << d;
          std::vector<std::byte> range(2 * view.row_bytes);
          mtf::gather_range(view, 1, 2, range.data());
          const std::vector<std::int64_t> one_two = {1, 2};
          ASSERT_EQ(range, expected(middle, shape, strides, 2, one_two));
        }
      }
    }
  }
  EXPECT_EQ(num_dense, 10);  // strides 24, 8, 2 inside, any row stride
}

TEST(Gather, RefusesRowsOutsideTheArray) {
  const auto data = bytes(40);
  const std::uint64_t shape[] = {10, 4};
  const std::ptrdiff_t strides[] = {4, 1};
  const ArrayView view = mtf::view_of(data.data(), shape, strides, 1);
  std::vector<std::byte> out(400, std::byte{7});
  for (const std::int64_t bad : {std::int64_t{10}, std::int64_t{-1}, std::int64_t{1} << 62, INT64_MIN}) {
    const std::vector<std::int64_t> rows = {0, 9, bad, 3};
    try {
      mtf::gather(view, rows, out.data());
      FAIL() << bad;
    } catch (const mtf::ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("position 2 is " + std::to_string(bad)), std::string::npos)
          << error.what();
    }
  }
  EXPECT_EQ(out[0], std::byte{7}) << "nothing is copied when a row is refused";
  EXPECT_THROW(mtf::gather_range(view, 8, 3, out.data()), mtf::ConfigError);
  EXPECT_THROW(mtf::gather_range(view, 11, 0, out.data()), mtf::ConfigError);
  EXPECT_THROW(mtf::gather_range(view, 1, UINT64_MAX, out.data()), mtf::ConfigError);
  EXPECT_NO_THROW(mtf::gather_range(view, 10, 0, out.data()));
}

TEST(Windows, AreRowsOfTheStream) {
  std::vector<std::int32_t> tokens(50);
  std::iota(tokens.begin(), tokens.end(), 100);
  const auto* data = reinterpret_cast<const std::byte*>(tokens.data());
  const std::uint64_t shape[] = {tokens.size()};
  const std::ptrdiff_t strides[] = {4};
  for (std::uint64_t length = 1; length <= 51; ++length) {
    for (std::uint64_t stride = 1; stride <= 12; ++stride) {
      const ArrayView view = mtf::windows_of(data, shape, strides, 4, length, stride);
      std::uint64_t count = 0;
      while (count * stride + length <= tokens.size()) {
        ++count;
      }
      ASSERT_EQ(view.num_rows, count) << length << ' ' << stride;
      ASSERT_EQ(mtf::count_windows(tokens.size(), length, stride), count);
      ASSERT_TRUE(view.axes.empty());
      if (count == 0) {
        continue;
      }
      const std::vector<std::int64_t> rows = {static_cast<std::int64_t>(count - 1), 0};
      std::vector<std::int32_t> out(2 * length);
      mtf::gather(view, rows, reinterpret_cast<std::byte*>(out.data()));
      for (std::uint64_t k = 0; k < length; ++k) {
        ASSERT_EQ(out[k], tokens[(count - 1) * stride + k]);
        ASSERT_EQ(out[length + k], tokens[k]);
      }
    }
  }
  EXPECT_THROW(static_cast<void>(mtf::count_windows(5, 0, 1)), mtf::ConfigError);
  EXPECT_THROW(static_cast<void>(mtf::count_windows(5, 1, 0)), mtf::ConfigError);
}

TEST(View, RefusesScalarsAndUnequalDimensions) {
  const std::byte item{};
  const std::uint64_t shape[] = {3, 2};
  const std::ptrdiff_t strides[] = {1};
  EXPECT_THROW(static_cast<void>(mtf::view_of(&item, {}, {}, 1)), mtf::ConfigError);
  EXPECT_THROW(static_cast<void>(mtf::view_of(&item, shape, strides, 1)), mtf::ConfigError);
}

TEST(Gather, MixedRowsComeFromTheirArrays) {
  for (const std::size_t row_bytes : {1, 8, 64, 100, 256, 5000}) {
    // Strides of one array are negative, those of another leave a gap between rows.
    const std::vector<std::byte> data[] = {bytes(row_bytes * 50 + 3), bytes(row_bytes * 90), bytes(row_bytes * 2)};
    const auto row = static_cast<std::ptrdiff_t>(row_bytes);
    const mtf::RowBase bases[] = {
        {data[0].data() + 3 + 49 * row, -row}, {data[1].data(), 2 * row}, {data[2].data(), row}};
    std::vector<std::int32_t> arrays;
    std::vector<std::uint64_t> rows;
    std::vector<std::byte> wanted;
    for (std::uint64_t k = 0; k < 200; ++k) {
      arrays.push_back(static_cast<std::int32_t>(k * 7 % 3));
      const std::size_t array = k * 7 % 3;
      rows.push_back(k * 13 % (array == 0 ? 50 : array == 1 ? 45 : 2));
      const std::byte* const from =
          bases[array].data + static_cast<std::ptrdiff_t>(rows.back()) * bases[array].stride_bytes;
      wanted.insert(wanted.end(), from, from + row_bytes);
    }
    for (const std::size_t num : {0, 1, 40, 200}) {
      std::vector<std::byte> out(num * row_bytes);
      mtf::gather_mixed(bases, row_bytes, std::span(arrays).first(num), std::span(rows).first(num), out.data());
      EXPECT_EQ(out, std::vector(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(num * row_bytes)));
    }
  }
}

}  // namespace
