/// Any of the patterns in the rows of options.def: a closed set, to be visited.
#pragma once

#include <variant>

#include "mtf/schedule/enum_names.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/all.hpp"

namespace mtf {

namespace detail {
/// The rows begin with a comma each, so something must stand before them.
template <class Ignored, class... Patterns>
using VariantAfter = std::variant<Patterns...>;
}  // namespace detail

// clang-format off
using AnyPattern = detail::VariantAfter<void
#define MTF_STRATEGY(member, name, pattern) , pattern
#define MTF_WEIGHTED_ORDER(member, name, pattern) , pattern
#include "mtf/schedule/options.def"
>;
// clang-format on

/// The pattern of a strategy; `order` decides where the strategy has several.
[[nodiscard]] AnyPattern make_pattern(Strategy strategy, WeightedOrder order, const PatternInput& input);

}  // namespace mtf
