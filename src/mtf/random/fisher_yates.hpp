/// A uniformly random order of at most 2^16 items, chosen by a key.
#pragma once

#include <cstdint>
#include <span>

#include "mtf/random/key.hpp"

namespace mtf {

/// Puts `items` (at most 2^16) in an order that depends only on `key` and the number of items; each order is equally
/// likely.
///
/// For i = size - 1 down to 1, item i changes places with item j, an unbiased draw from [0, i]. The draws take the
/// 32-bit words of the key's stream in order, with Lemire's rejection. Complexity: O(size), 2 to 3 ns per item.
void fisher_yates(Key key, std::span<std::uint16_t> items) noexcept;

}  // namespace mtf
