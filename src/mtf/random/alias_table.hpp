/// Independent draws from [0, n) with exact integer weights, one 32-bit random word each.
///
/// The n weights sum to 2^31 and are cut into 2^b >= n cells of equal weight, each shared by at most two sources
/// (Walker's alias method, filled by Vose's algorithm in integers). A word's upper b bits name the cell and the next 31
/// - b bits the place inside it, so each source is drawn by exactly 2 * weight of the 2^32 words: no rounding, no
/// rejection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "mtf/random/cpu.hpp"
#include "mtf/random/key.hpp"

namespace mtf {

/// Complexity: 8 bytes per cell, O(n) to build. Thread safety: const methods are pure.
class AliasTable {
 public:
  static constexpr std::uint64_t kTotalWeight = std::uint64_t{1} << 31;

  /// Throws: ConfigError unless the weights sum to 2^31 (a weight may be 0: that source is never drawn).
  explicit AliasTable(std::span<const std::uint32_t> weights);

  /// The source that a random word draws.
  [[nodiscard]] std::uint32_t operator()(std::uint32_t word) const noexcept {
    const std::uint32_t own = word >> shift_;
    const Cell cell = cells_[own];
    // A mask rather than a branch: which of the two is drawn can't be predicted.
    const std::uint32_t aliased = 0u - static_cast<std::uint32_t>(static_cast<std::int32_t>(word >> 1) > cell.last);
    return own ^ ((own ^ cell.alias) & aliased);
  }

  /// Draws [begin, begin + out.size()): draw t takes word t of the key's stream. The same for every `simd`.
  /// Complexity: O(size), 1 to 2.5 ns per draw.
  void fill(Key key, std::uint64_t begin, std::span<std::int32_t> out, Simd simd = best_simd()) const noexcept;

 private:
  /// `last` is the last half word (word >> 1) that draws the cell's own source; below the cell's first one if none
  /// does.
  struct Cell {
    std::int32_t last;
    std::uint32_t alias;
  };

#if MTF_HAS_AVX2_CODE
  std::size_t look_up_avx2(const std::uint32_t* words, std::size_t num, std::int32_t* out) const noexcept;
#endif

  std::vector<Cell> cells_;
  std::uint32_t shift_;
};

}  // namespace mtf
