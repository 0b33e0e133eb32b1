/// A bijection of [0, n) chosen by a key, computed at any index.
///
/// For n <= 4096 it is a table, shuffled by Fisher and Yates without bias. Above, a Feistel network of eight rounds
/// permutes [0, 2^b), b = ceil(log2 n); an image outside [0, n) is encrypted again until it lies inside, which keeps
/// the bijection and takes fewer than two turns on average. No image depends on another, so a shuffled order of any
/// length needs no memory and can be entered anywhere. Of fewer rounds, five leave traces in the differences of
/// neighbours (chi-square, n = 2^13 to 2^32), six none: eight is that and two to spare.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "mtf/random/cpu.hpp"
#include "mtf/random/key.hpp"

namespace mtf {

/// Complexity: O(1) memory (at most 8 KiB). Thread safety: const methods are pure.
class Permutation {
 public:
  static constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 62;
  static constexpr std::uint64_t kMaxTableSize = 4096;
  static constexpr std::uint64_t kMaxCompactTableSize = 32;

  /// The permutation of [0, n) that `key` names; n <= 2^62. Throws: ConfigError for a greater n.
  Permutation(std::uint64_t n, Key key) : Permutation(n, key, kMaxTableSize) {}

  /// Another permutation of [0, n), for callers that need many small ones: it is a table for n <= 32 only, and the
  /// network above, so that making it costs less than 0.1 us for every n. Throws: as the constructor.
  [[nodiscard]] static Permutation compact(std::uint64_t n, Key key) {
    return Permutation(n, key, kMaxCompactTableSize);
  }

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// The image of i, in [0, n). Requires i < n. Complexity: O(1) expected, 5 to 40 ns.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t i) const noexcept;

  /// The i whose image is `image`. Requires image < n. Complexity: as operator(); a table is searched, up to 2 us.
  [[nodiscard]] std::uint64_t inverse(std::uint64_t image) const noexcept;

  /// Writes the images of [begin, begin + out.size()), the same for every `simd`.
  /// Throws: std::out_of_range if that isn't within [0, n).
  void fill(std::uint64_t begin, std::span<std::int64_t> out, Simd simd = best_simd()) const;

 private:
  static constexpr std::size_t kNumRounds = 8;
  // Values are encrypted in groups, whose rounds a processor can overlap.
  static constexpr std::size_t kGroup = 16;

  Permutation(std::uint64_t n, Key key, std::uint64_t max_table_size);

  [[nodiscard]] bool is_table() const noexcept { return num_right_bits_ == 0; }

  /// The round function: a keyed widening multiplication, whose high half is folded onto the low one.
  [[nodiscard]] std::uint32_t mix(std::uint32_t half, std::size_t round) const noexcept;
  /// The Feistel network, a bijection of [0, 2^b); in place for many values below.
  [[nodiscard]] std::uint64_t encrypt(std::uint64_t x) const noexcept;
  /// Its inverse: the rounds backwards.
  [[nodiscard]] std::uint64_t decrypt(std::uint64_t x) const noexcept;
  void encrypt_all(std::span<std::uint64_t> values, Simd simd) const noexcept;
  void encrypt_group_portable(std::uint64_t* values) const noexcept;
#if MTF_HAS_AVX2_CODE
  void encrypt_groups_avx2(std::uint64_t* values, std::size_t num_groups) const noexcept;
#endif

  std::uint64_t size_;
  std::vector<std::uint16_t> table_;
  std::uint32_t num_right_bits_ = 0;  // 0: the permutation is a table
  std::uint32_t left_mask_ = 0;
  std::uint32_t right_mask_ = 0;
  std::array<std::uint32_t, kNumRounds> addends_{};
  std::array<std::uint32_t, kNumRounds> factors_{};
};

}  // namespace mtf
