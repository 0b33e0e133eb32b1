// Words, weighted draws and permutations, beside the bounds: a memory write, and the words that a draw needs.
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "harness.hpp"
#include "mtf/random/alias_table.hpp"
#include "mtf/random/fisher_yates.hpp"
#include "mtf/random/permutation.hpp"
#include "mtf/random/philox_fill.hpp"

namespace {

using mtf::Key;
using mtf::Simd;
using mtf::bench::keep;
using mtf::bench::measure;

/// Zipf weights that sum to 2^31.
std::vector<std::uint32_t> zipf_weights(std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    sum += 1.0 / static_cast<double>(i + 1);
  }
  std::vector<std::uint32_t> weights(n);
  for (std::size_t i = 0; i < n; ++i) {
    weights[i] = static_cast<std::uint32_t>(2147480000.0 / sum / static_cast<double>(i + 1));
  }
  weights[0] += static_cast<std::uint32_t>(mtf::AliasTable::kTotalWeight -
                                           std::accumulate(weights.begin(), weights.end(), std::uint64_t{0}));
  return weights;
}

void bench_words(std::size_t num_items) {
  std::vector<std::uint32_t> words(num_items);
  std::uint32_t value = 0;
  measure("memory write int32", num_items, [&] {
    std::fill(words.begin(), words.end(), ++value);
    keep(words.data());
  });
  for (const auto& [name, simd] :
       {std::pair{"philox word portable", Simd::portable}, {"philox word", mtf::best_simd()}}) {
    measure(name, num_items, [&, simd = simd] {
      mtf::philox_fill(Key{1}, 0, words, simd);
      keep(words.data());
    });
  }
}

void bench_alias(std::size_t num_items) {
  std::vector<std::int32_t> draws(num_items);
  for (const std::size_t n : {4, 16, 64, 1024, 100000}) {
    const mtf::AliasTable table(zipf_weights(n));
    for (const auto& [suffix, simd] : {std::pair{" portable", Simd::portable}, {"", mtf::best_simd()}}) {
      measure(("alias draw n=" + std::to_string(n) + suffix).c_str(), num_items, [&, simd = simd] {
        table.fill(Key{1}, 0, draws, simd);
        keep(draws.data());
      });
    }
  }
}

void bench_permutation() {
  for (const std::uint64_t n :
       {1000ull, 4096ull, 4097ull, 1000000ull, 1048576ull, 1048577ull, 100000000ull, 1000000000ull, 1ull << 62}) {
    const mtf::Permutation permutation(n, Key{1});
    std::vector<std::int64_t> images(std::min<std::uint64_t>(n, 1 << 20));
    for (const auto& [suffix, simd] : {std::pair{" portable", Simd::portable}, {"", mtf::best_simd()}}) {
      measure(("permutation index n=" + std::to_string(n) + suffix).c_str(), images.size(), [&, simd = simd] {
        permutation.fill(0, images, simd);
        keep(images.data());
      });
    }
    std::uint64_t i = 0;
    measure(("permutation single index n=" + std::to_string(n)).c_str(), 1000, [&] {
      for (int turn = 0; turn < 1000; ++turn) {
        i = permutation((i + 1) % n);
      }
      keep(i);
    });
  }
  std::vector<std::int64_t> batch(256);
  std::uint64_t seed = 0;
  measure("first batch of 256 of 10^8 (whole batch)", 1, [&] {
    mtf::Permutation(100000000, Key{++seed}).fill(0, batch);
    keep(batch.data());
  });
  measure("build the table of n=4096 (whole table)", 1, [&] { keep(mtf::Permutation(4096, Key{++seed})(0)); });
  std::vector<std::uint16_t> block(64);
  measure("fisher-yates of a block of 64, per item", 64, [&] {
    mtf::fisher_yates(Key{++seed}, block);
    keep(block.data());
  });
}

}  // namespace

int main() {
  constexpr std::size_t kNumItems = 1 << 20;
  bench_words(kNumItems);
  bench_alias(kNumItems);
  bench_permutation();
}
