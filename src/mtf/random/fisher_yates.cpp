#include "mtf/random/fisher_yates.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <utility>

#include "mtf/random/philox_fill.hpp"

namespace mtf {

void fisher_yates(Key key, std::span<std::uint16_t> items) noexcept {
  assert(items.size() <= std::size_t{1} << 16);
  constexpr std::size_t kBlock = 256;
  std::array<std::uint32_t, kBlock> words;
  std::uint64_t position = 0;
  std::size_t next = 0, end = 0;
  for (std::size_t i = items.size(); i-- > 1;) {
    const auto bound = static_cast<std::uint32_t>(i + 1);
    std::uint64_t product = 0;
    bool rejected = true;
    while (rejected) {
      if (next == end) {
        end = std::min(kBlock, i);
        next = 0;
        philox_fill(key, position, std::span(words).first(end));
        position += end;
      }
      product = std::uint64_t{words[next++]} * bound;
      const auto low = static_cast<std::uint32_t>(product);
      // The division is needed only for the few words that may be beyond the last whole multiple of the bound.
      rejected = low < bound && low < (0 - bound) % bound;
    }
    std::swap(items[i], items[product >> 32]);
  }
}

}  // namespace mtf
