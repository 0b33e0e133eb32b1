#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mtf/random/philox_fill.hpp"

namespace {

using mtf::Key;
using mtf::Simd;

TEST(PhiloxFill, IsTheStreamAtEveryCut) {
  for (const Key key : {Key{0}, Key{~0ull}, Key{0x123456789ABCDEF0}}) {
    // The third one lets the counter carry into its high word, the last one into the highest bit.
    for (const std::uint64_t start : {0ull, 1000ull, (1ull << 34) - 200, (1ull << 63) - 100}) {
      std::vector<std::uint32_t> all(500);
      mtf::Stream stream(key, start / 2);
      for (std::size_t t = 0; t < all.size(); t += 2) {
        const std::uint64_t pair = stream.next();
        all[t] = static_cast<std::uint32_t>(pair);
        all[t + 1] = static_cast<std::uint32_t>(pair >> 32);
      }
      for (const Simd simd : {Simd::portable, mtf::best_simd()}) {
        for (std::size_t begin = 0; begin < 80; ++begin) {
          for (std::size_t size = 0; size + begin <= all.size(); size += size < 140 ? 1 : 37) {
            std::vector<std::uint32_t> part(size + 1, 7);
            mtf::philox_fill(key, start + begin, std::span(part).first(size), simd);
            ASSERT_TRUE(std::equal(part.begin(), part.end() - 1, all.begin() + static_cast<std::ptrdiff_t>(begin)));
            ASSERT_EQ(part.back(), 7u) << "written beyond the end";
          }
        }
      }
    }
  }
}

}  // namespace
