#include "mtf/random/philox_fill.hpp"

#include <algorithm>
#include <cstddef>

namespace mtf {

namespace {

PhiloxCounter block(Key key, std::uint64_t index) noexcept {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                     static_cast<std::uint32_t>(KeyUse::stream), 0},
                    key.words());
}

}  // namespace

void philox_fill(Key key, std::uint64_t begin, std::span<std::uint32_t> out, Simd) noexcept {
  std::uint64_t index = begin / 4;
  std::size_t offset = begin % 4;
  for (std::size_t done = 0; done < out.size(); ++index, offset = 0) {
    const PhiloxCounter words = block(key, index);
    const std::size_t num = std::min(out.size() - done, 4 - offset);
    std::copy_n(words.begin() + offset, num, out.begin() + done);
    done += num;
  }
}

}  // namespace mtf
