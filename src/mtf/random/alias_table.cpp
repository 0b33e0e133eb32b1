#include "mtf/random/alias_table.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <numeric>
#include <string>

#include "mtf/error.hpp"
#include "mtf/random/philox_fill.hpp"

namespace mtf {

AliasTable::AliasTable(std::span<const std::uint32_t> weights) {
  const std::uint64_t total = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0});
  if (total != kTotalWeight) {
    throw ConfigError("the weights of an alias table must sum to 2^31, but the sum of these " +
                      std::to_string(weights.size()) + " is " + std::to_string(total) + ".");
  }
  // At least two cells, so that the shift stays below the width of a word.
  const std::uint32_t num_bits =
      std::max<std::uint32_t>(1, static_cast<std::uint32_t>(std::bit_width(weights.size() - 1)));
  if (num_bits > 31) {
    throw ConfigError("an alias table has at most 2^31 weights, but there are " + std::to_string(weights.size()) + ".");
  }
  const std::size_t num_cells = std::size_t{1} << num_bits;
  const auto capacity = static_cast<std::uint32_t>(kTotalWeight >> num_bits);
  shift_ = 32 - num_bits;

  std::vector<std::uint32_t> rest(weights.begin(), weights.end());
  rest.resize(num_cells);
  std::vector<std::uint32_t> light, heavy;
  for (std::uint32_t cell = 0; cell < num_cells; ++cell) {
    (rest[cell] < capacity ? light : heavy).push_back(cell);
  }
  cells_.resize(num_cells);
  const auto set = [&](std::uint32_t cell, std::uint32_t own, std::uint32_t alias) {
    cells_[cell] = {static_cast<std::int32_t>(std::int64_t{cell} * capacity + own - 1), alias};
  };
  // Each turn fills one light cell from a heavy one. The cells' weights sum to num_cells * capacity throughout, so as
  // long as a light cell is left there is a heavy one to fill it.
  while (!light.empty()) {
    const std::uint32_t cell = light.back();
    light.pop_back();
    const std::uint32_t giver = heavy.back();
    set(cell, rest[cell], giver);
    rest[giver] -= capacity - rest[cell];
    if (rest[giver] < capacity) {
      heavy.pop_back();
      light.push_back(giver);
    }
  }
  for (const std::uint32_t cell : heavy) {
    set(cell, capacity, cell);
  }
}

void AliasTable::fill(Key key, std::uint64_t begin, std::span<std::int32_t> out, Simd simd) const noexcept {
  constexpr std::size_t kBlock = 2048;
  std::array<std::uint32_t, kBlock> words;
  for (std::size_t done = 0; done < out.size(); done += kBlock) {
    const std::size_t num = std::min(kBlock, out.size() - done);
    philox_fill(key, begin + done, std::span(words).first(num), simd);
    for (std::size_t i = 0; i < num; ++i) {
      out[done + i] = static_cast<std::int32_t>((*this)(words[i]));
    }
  }
}

}  // namespace mtf
