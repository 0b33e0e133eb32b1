/// The 32-bit words of a key's stream in bulk, at any position.
#pragma once

#include <cstdint>
#include <span>

#include "mtf/random/cpu.hpp"
#include "mtf/random/key.hpp"

namespace mtf {

/// Writes words [begin, begin + out.size()) of the key's stream: word t is word t mod 4 of the block at counter t / 4,
/// so that `Stream` position p is words 2p (low half) and 2p + 1 (high half). begin + out.size() <= 2^64. The words are
/// the same for every `simd`. Complexity: O(size), about 0.4 ns per word with AVX2. Thread safety: pure.
void philox_fill(Key key, std::uint64_t begin, std::span<std::uint32_t> out, Simd simd = best_simd()) noexcept;

}  // namespace mtf
