/// Weights of the slots that are still alive, to draw from: a Fenwick tree of their sums.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace mtf {

class ActiveWeights {
 public:
  explicit ActiveWeights(std::span<const std::uint32_t> weights) : sums_(weights.begin(), weights.end()) {
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      total_ += weights[i];
      const std::size_t above = i | (i + 1);
      if (above < sums_.size()) {
        sums_[above] += sums_[i];
      }
    }
  }

  [[nodiscard]] std::uint64_t total() const noexcept { return total_; }

  /// Takes a slot out, once. Complexity: O(log n).
  void remove(std::size_t slot, std::uint32_t weight) noexcept {
    total_ -= weight;
    for (std::size_t i = slot; i < sums_.size(); i |= i + 1) {
      sums_[i] -= weight;
    }
  }

  /// The slot that unit `unit` < total() belongs to. Complexity: O(log n).
  [[nodiscard]] std::size_t find(std::uint64_t unit) const noexcept {
    std::size_t slot = 0;
    for (std::size_t width = std::bit_floor(sums_.size()); width > 0; width /= 2) {
      if (slot + width <= sums_.size() && sums_[slot + width - 1] <= unit) {
        unit -= sums_[slot + width - 1];
        slot += width;
      }
    }
    return slot;
  }

 private:
  std::vector<std::uint64_t> sums_;  // sums_[i]: of the slots from i & (i + 1) to i
  std::uint64_t total_ = 0;
};

}  // namespace mtf
