#include "mtf/schedule/patterns/survivors.hpp"

#include <algorithm>
#include <bit>

namespace mtf {

Survivors::Survivors(std::span<const std::uint32_t> leaving)
    : num_members_(static_cast<std::uint32_t>(leaving.size())) {
  std::vector<std::uint32_t> order(leaving.begin(), leaving.end());
  for (int bit = std::bit_width(num_members_ == 0 ? 0U : num_members_ - 1) - 1; bit >= 0; --bit) {
    const auto is_zero = [bit](std::uint32_t member) { return ((member >> bit) & 1U) == 0; };
    std::vector<std::uint32_t>& zeros = zeros_.emplace_back(order.size() + 1);
    for (std::size_t i = 0; i < order.size(); ++i) {
      zeros[i + 1] = zeros[i] + (is_zero(order[i]) ? 1U : 0U);
    }
    std::stable_partition(order.begin(), order.end(), is_zero);
  }
}

std::uint32_t Survivors::select(std::uint32_t num_gone, std::uint32_t k) const noexcept {
  std::uint32_t begin = num_gone;
  std::uint32_t end = num_members_;
  std::uint32_t member = 0;
  for (const std::vector<std::uint32_t>& zeros : zeros_) {
    const std::uint32_t num_zeros = zeros[end] - zeros[begin];
    member <<= 1;
    if (k < num_zeros) {
      begin = zeros[begin];
      end = zeros[end];
    } else {
      k -= num_zeros;
      member |= 1U;
      begin = zeros.back() + begin - zeros[begin];
      end = zeros.back() + end - zeros[end];
    }
  }
  return member;
}

std::uint32_t Survivors::rank(std::uint32_t num_gone, std::uint32_t member) const noexcept {
  std::uint32_t begin = num_gone;
  std::uint32_t end = num_members_;
  std::uint32_t num_below = 0;
  auto bit = static_cast<int>(zeros_.size());
  for (const std::vector<std::uint32_t>& zeros : zeros_) {
    if (((member >> --bit) & 1U) == 0) {
      begin = zeros[begin];
      end = zeros[end];
    } else {
      num_below += zeros[end] - zeros[begin];
      begin = zeros.back() + begin - zeros[begin];
      end = zeros.back() + end - zeros[end];
    }
  }
  return num_below;
}

}  // namespace mtf
