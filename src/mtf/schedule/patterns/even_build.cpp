#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/patterns/even_tree.hpp"

namespace mtf {
namespace {

using Wide = unsigned __int128;
using Signed = __int128;

// Fixed point for the sums of weight ratios along a path, which stay below 3.4.
constexpr int kRatioBits = 62;

}  // namespace

namespace {

void check(std::span<const std::uint32_t> weights, std::uint64_t total, std::span<const std::string> names,
           std::span<const std::uint64_t> limits) {
  if (weights.empty() || total > kMaxTotalWeight) {
    throw ConfigError(format_message("integer weights must sum to at least 1 and at most 2^31, got {}", total));
  }
  for (std::size_t slot = 0; slot < weights.size(); ++slot) {
    if (weights[slot] == 0) {
      throw ConfigError(format_message("integer weights must be positive, got weights[{}] = 0", slot));
    }
  }
  if ((!names.empty() && names.size() != weights.size()) || (!limits.empty() && limits.size() != weights.size())) {
    throw ConfigError(format_message("names and limits must have one entry per weight ({}), got {} and {}",
                                     weights.size(), names.size(), limits.size()));
  }
}

}  // namespace

EvenTree::EvenTree(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                   std::span<const std::uint64_t> limits, Key key)
    : EvenTree(weights, names, key) {
  check(weights, total_, names, limits);
  choose_phases(fold_in(key, "phases"));
  set_limits(limits);
}

EvenTree::EvenTree(std::span<const std::uint32_t> weights, std::span<const std::string> names, Key key)
    : weights_(weights.begin(), weights.end()),
      total_(std::accumulate(weights.begin(), weights.end(), std::uint64_t{0})) {
  check(weights, total_, names, {});
  grow(leaf_order(names, key));
}

/// The slots by (weight, name), equal weights in an order drawn from the key.
std::vector<std::int32_t> EvenTree::leaf_order(std::span<const std::string> names, Key key) const {
  std::vector<std::int32_t> leaves(weights_.size());
  std::iota(leaves.begin(), leaves.end(), 0);
  std::ranges::stable_sort(leaves, [&](std::int32_t a, std::int32_t b) {
    const auto i = static_cast<std::size_t>(a);
    const auto j = static_cast<std::size_t>(b);
    return weights_[i] != weights_[j] ? weights_[i] < weights_[j] : !names.empty() && names[i] < names[j];
  });
  Stream stream(fold_in(key, "ties"));
  for (std::size_t begin = 0; begin < leaves.size();) {
    std::size_t end = begin + 1;
    while (end < leaves.size() && weight_of(~leaves[end]) == weight_of(~leaves[begin])) {
      ++end;
    }
    for (std::size_t i = end - 1; i > begin; --i) {
      std::swap(leaves[i], leaves[begin + stream.bounded(i - begin + 1)]);
    }
    begin = end;
  }
  return leaves;
}

/// Huffman's tree from two queues: leaves and inner nodes, each ascending; at equal weights the leaf goes first.
void EvenTree::grow(std::span<const std::int32_t> leaves) {
  node_weights_.reserve(leaves.size() - 1);
  nodes_.reserve(leaves.size() - 1);
  node_parents_.resize(leaves.size() - 1);
  leaf_parents_.resize(leaves.size());
  std::size_t next_leaf = 0;
  std::size_t next_node = 0;
  const auto take = [&](bool is_light) {
    const bool is_leaf = next_node == nodes_.size() ||
                         (next_leaf < leaves.size() && weight_of(~leaves[next_leaf]) <= node_weights_[next_node]);
    const Parent parent{static_cast<std::int32_t>(nodes_.size()), is_light};
    if (is_leaf) {
      leaf_parents_[static_cast<std::size_t>(leaves[next_leaf])] = parent;
      return ~leaves[next_leaf++];
    }
    node_parents_[next_node] = parent;
    return static_cast<Child>(next_node++);
  };
  for (std::size_t i = 1; i < leaves.size(); ++i) {
    const Child light = take(true);
    const Child heavy = take(false);
    nodes_.push_back({light, heavy, 0, 1});
    node_weights_.push_back(weight_of(light) + weight_of(heavy));
  }
  root_ = nodes_.empty() ? ~0 : static_cast<Child>(nodes_.size() - 1);
}

std::uint32_t EvenTree::weight_of(Child child) const noexcept {
  return child < 0 ? weights_[static_cast<std::size_t>(~child)] : node_weights_[static_cast<std::size_t>(child)];
}

/// The largest sum over a leaf's path of what its nodes are off: `off(interval, node)`, which a child passes on in
/// proportion to its weight. `all`: how far the root itself is off.
template <class Off>
void EvenTree::certify(double all, Off off) {
  std::vector<double> bounds(nodes_.size(), all);
  deviation_bound_ = all;
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    const Interval& interval = intervals_[i];
    const double own = off(interval, i);
    for (const Child child : {nodes_[i].light, nodes_[i].heavy}) {
      const double bound = bounds[i] * weight_of(child) / interval.weight + own;
      if (child < 0) {
        deviation_bound_ = std::max(deviation_bound_, bound);
      } else {
        bounds[static_cast<std::size_t>(child)] = bound;
      }
    }
  }
  deviation_bound_ *= 1 + 1e-9;  // what the sums above may have lost
}

/// One interval per node, its phase within (v - 1) / 2 -+ floor(delta v), delta = clamp(3 / (2 R) - 1/2, 0, 1/2) where
/// R is the largest sum of w_i / w_u over a leaf's path; and the bound that follows from the phases.
void EvenTree::choose_phases(Key key) {
  // Parents come last, so both passes go backwards. Integers, since phases decide draws.
  std::vector<std::uint64_t> inverse_sums(nodes_.size());
  std::uint64_t largest = 1;
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    for (const Child child : {nodes_[i].light, nodes_[i].heavy}) {
      const std::uint64_t sum = inverse_sums[i] + (std::uint64_t{1} << kRatioBits) / weight_of(child);
      if (child < 0) {
        largest = std::max(largest, sum * weight_of(child));
      } else {
        inverse_sums[static_cast<std::size_t>(child)] = sum;
      }
    }
  }
  const Wide three = Wide{3} << kRatioBits;
  const Wide room = largest >= three ? 0 : three - largest;

  Stream stream(key);
  intervals_.reserve(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::uint64_t weight = node_weights_[i];
    const auto spread =
        std::min<std::uint64_t>(static_cast<std::uint64_t>(room * weight / (Wide{2} * largest)), weight / 2);
    // guard: rounding in EVEN
    const std::uint64_t middle = (weight - 1) / 2;
    const std::uint64_t lowest = middle - std::min(middle, spread);
    const std::uint64_t highest = std::min(weight - 1, middle + spread);
    const auto phase = static_cast<std::uint32_t>(lowest + stream.bounded(highest - lowest + 1));
    nodes_[i].first_interval = static_cast<std::uint32_t>(i);
    intervals_.emplace_back(0, 0, weight_of(nodes_[i].light), node_weights_[i], phase);
  }

  certify(0.0, [](const Interval& interval, std::size_t) {
    return static_cast<double>(std::max(interval.phase, interval.weight - 1 - interval.phase)) / interval.weight;
  });
}

bool EvenTree::start_from(std::span<const std::int64_t> deficits) {
  std::vector<Signed> node_deficits(nodes_.size());
  std::vector<double> leans(nodes_.size());  // of y at the phase chosen, from the middle
  const auto deficit_below = [&](Child child) -> Signed {
    return child < 0 ? deficits[static_cast<std::size_t>(~child)] : node_deficits[static_cast<std::size_t>(child)];
  };
  bool fits = true;
  intervals_.clear();
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Signed light = deficit_below(nodes_[i].light);
    node_deficits[i] = light + deficit_below(nodes_[i].heavy);
    const Signed weight = node_weights_[i];
    // (y + 1/2) v, in units of 2^-kDeficitBits.
    const Signed wanted =
        light * weight - node_deficits[i] * weight_of(nodes_[i].light) + (weight << (kDeficitBits - 1));
    const Signed phase = std::clamp<Signed>(wanted >> kDeficitBits, 0, weight - 1);
    fits = fits && phase == wanted >> kDeficitBits;
    leans[i] = (std::ldexp(static_cast<double>(wanted), -kDeficitBits) - static_cast<double>(phase)) /
                   static_cast<double>(weight) -
               0.5;
    nodes_[i].first_interval = static_cast<std::uint32_t>(i);
    intervals_.emplace_back(0, 0, weight_of(nodes_[i].light), node_weights_[i], static_cast<std::uint32_t>(phase));
  }
  const Signed all = deficit_below(root_);
  certify(std::abs(std::ldexp(static_cast<double>(all), -kDeficitBits)), [&](const Interval& interval, std::size_t i) {
    return std::max(std::abs(leans[i]), std::abs(leans[i] + (interval.weight - 1.0) / interval.weight));
  });
  return fits;
}

}  // namespace mtf
