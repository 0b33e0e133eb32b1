/// The k-th survivor, in index order, after the first q of m members have left in a known order: O(log m) for any
/// (k, q), from a wavelet matrix over the order of leaving.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mtf {

class Survivors {
 public:
  Survivors() = default;

  /// `leaving` is a permutation of [0, m): who leaves first, second, ... Complexity: O(m log m) time, 4 m log2 m bytes.
  explicit Survivors(std::span<const std::uint32_t> leaving);

  /// The k-th smallest member (from 0) of those left after `num_gone` departures; k < m - num_gone.
  [[nodiscard]] std::uint32_t select(std::uint32_t num_gone, std::uint32_t k) const noexcept;

  /// How many members below `member` are left after `num_gone` departures.
  [[nodiscard]] std::uint32_t rank(std::uint32_t num_gone, std::uint32_t member) const noexcept;

 private:
  // One level per bit of a member, highest first: entry i is the number of zero bits among the first i members in the
  // order of that level, which is stably sorted by the bits above.
  std::vector<std::vector<std::uint32_t>> zeros_;
  std::uint32_t num_members_ = 0;
};

}  // namespace mtf
