/// Which part of a global batch each rank has.
///
/// The parts are contiguous, in the order of the ranks, and their sizes differ by at most one, the greater first. So
/// the ranks' parts laid end to end are the global batch, whatever their number is.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mtf {

/// The half-open range [begin, end) of places in a global batch.
struct ShardRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] constexpr std::uint64_t size() const noexcept { return end - begin; }
  friend constexpr bool operator==(const ShardRange&, const ShardRange&) = default;
};

/// The part of `size` places that rank `rank` of `world_size` has; empty for the last ranks if there are more ranks
/// than places. Requires rank < world_size. Complexity: O(1). Thread safety: pure.
[[nodiscard]] constexpr ShardRange shard(std::uint64_t size, std::uint64_t rank, std::uint64_t world_size) noexcept {
  const std::uint64_t share = size / world_size, num_greater = size % world_size;
  // guard: part of a rank
  const std::uint64_t begin = rank * share + std::min(rank, num_greater);
  return {begin, begin + share + (rank < num_greater ? 1 : 0)};
}

}  // namespace mtf
