#include "mtf/schedule/any_pattern.hpp"

namespace mtf {

namespace {

AnyPattern make_weighted(WeightedOrder order, const PatternInput& input) {
  switch (order) {
#define MTF_WEIGHTED_ORDER(member, name, pattern) \
  case WeightedOrder::member:                     \
    return pattern(input);
#include "mtf/schedule/options.def"
  }
  __builtin_unreachable();
}

}  // namespace

AnyPattern make_pattern(Strategy strategy, WeightedOrder order, const PatternInput& input) {
  switch (strategy) {
#define MTF_STRATEGY(member, name, pattern) \
  case Strategy::member:                    \
    return pattern(input);
#define MTF_STRATEGY_WITH_ORDERS(member, name) \
  case Strategy::member:                       \
    return make_weighted(order, input);
#include "mtf/schedule/options.def"
  }
  __builtin_unreachable();
}

}  // namespace mtf
