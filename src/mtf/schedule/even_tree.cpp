#include "mtf/schedule/even_tree.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/schedule/mixture.hpp"
#include "mtf/schedule/stable_split.hpp"

namespace mtf {
namespace {

using Wide = unsigned __int128;

// A Huffman tree over integers of sum 2^31 is at most 45 deep: each two levels up at least add like Fibonacci numbers.
constexpr std::size_t kMaxDepth = 64;

// Fixed point for the sums of weight ratios along a path, which stay below 3.4.
constexpr int kRatioBits = 62;

// Turns of a block that a word has a bit for.
constexpr std::size_t kMaxBlock = 64;

struct Division {
  std::uint64_t quotient;
  std::uint32_t remainder;
};

/// `numerator`, below 2^63, divided by `divisor`, given reciprocal_of(divisor).
constexpr Division divide(std::uint64_t numerator, std::uint32_t divisor, std::uint64_t reciprocal) noexcept {
  // By the truncated reciprocal the quotient is right or one too small.
  auto quotient = static_cast<std::uint64_t>((Wide{numerator} * reciprocal) >> 64);
  std::uint64_t remainder = numerator - quotient * divisor;
  const bool is_short = remainder >= divisor;
  quotient += is_short ? 1 : 0;
  remainder -= is_short ? divisor : 0;
  return {quotient, static_cast<std::uint32_t>(remainder)};
}

constexpr std::uint64_t reciprocal_of(std::uint32_t divisor) noexcept { return ~std::uint64_t{0} / divisor; }

constexpr std::uint64_t saturate(Wide step) noexcept {
  return step >= kMaxSteps ? kEndless : static_cast<std::uint64_t>(step);
}

}  // namespace

EvenTree::Piece::Piece(std::uint64_t clock_, std::uint64_t light_, std::uint32_t light_weight_, std::uint32_t weight_,
                       std::uint32_t phase_) noexcept
    : clock(clock_),
      light(light_),
      reciprocal(reciprocal_of(weight_)),
      light_weight(light_weight_),
      weight(weight_),
      phase(phase_) {}

EvenTree::Piece::Dealt EvenTree::Piece::dealt(std::uint64_t at_clock) const noexcept {
  std::uint64_t since = at_clock - clock;
  std::uint64_t whole = light;
  if (since >> 32 != 0) [[unlikely]] {
    whole += since / weight * light_weight;
    since %= weight;
  }
  const Division division = divide(since * light_weight + phase, weight, reciprocal);
  return {whole + division.quotient, division.remainder};
}

std::uint64_t EvenTree::Piece::reach(bool is_light, std::uint64_t count) const noexcept {
  const std::uint64_t share = is_light ? light_weight : weight - light_weight;
  if (share == 0) {
    return kEndless;
  }
  // light(d) = floor((d a + phase) / v) >= y from d = ceil((y v - phase) / a) on;
  // heavy(d) = ceil((d b - phase) / v) >= y from d = floor(((y - 1) v + phase) / b) + 1 on.
  const std::uint64_t y = count - (is_light ? light : clock - light);
  if (y >> 32 == 0) {
    const std::uint64_t since =
        is_light ? (y * weight - phase + share - 1) / share : ((y - 1) * weight + phase) / share + 1;
    return clock + since;
  }
  const Wide since =
      is_light ? (Wide{y} * weight - phase + share - 1) / share : (Wide{y - 1} * weight + phase) / share + 1;
  return saturate(since + clock);
}

EvenTree::EvenTree(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                   std::span<const std::uint64_t> limits, Key key)
    : weights_(weights.begin(), weights.end()),
      total_(std::accumulate(weights.begin(), weights.end(), std::uint64_t{0})),
      is_limited_(!limits.empty()),
      limits_(limits.begin(), limits.end()) {
  if (weights.empty() || total_ > kMaxTotalWeight) {
    throw ConfigError("integer weights must sum to at least 1 and at most 2^31, got " + std::to_string(total_));
  }
  for (std::size_t slot = 0; slot < weights.size(); ++slot) {
    if (weights[slot] == 0) {
      throw ConfigError("integer weights must be positive, got weights[" + std::to_string(slot) + "] = 0");
    }
  }
  if ((!names.empty() && names.size() != weights.size()) || (is_limited_ && limits.size() != weights.size())) {
    throw ConfigError("names and limits must have one entry per weight (" + std::to_string(weights.size()) + "), got " +
                      std::to_string(names.size()) + " and " + std::to_string(limits.size()));
  }
  grow(leaf_order(names, key));
  choose_phases(fold_in(key, "phases"));
  if (is_limited_) {
    length_ = 0;
    for (const std::uint64_t limit : limits) {
      length_ = add_steps(length_, limit);
    }
    place_deaths(limits);
  }
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

/// One piece per node, its phase within (v - 1) / 2 -+ floor(delta v), delta = clamp(3 / (2 R) - 1/2, 0, 1/2) where
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
  pieces_.reserve(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::uint64_t weight = node_weights_[i];
    const auto spread =
        std::min<std::uint64_t>(static_cast<std::uint64_t>(room * weight / (Wide{2} * largest)), weight / 2);
    const std::uint64_t middle = (weight - 1) / 2;
    const std::uint64_t lowest = middle - std::min(middle, spread);
    const std::uint64_t highest = std::min(weight - 1, middle + spread);
    const auto phase = static_cast<std::uint32_t>(lowest + stream.bounded(highest - lowest + 1));
    nodes_[i].first_piece = static_cast<std::uint32_t>(i);
    pieces_.emplace_back(0, 0, weight_of(nodes_[i].light), node_weights_[i], phase);
  }

  std::vector<double> bounds(nodes_.size());
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    const Piece& piece = pieces_[i];
    const double own = static_cast<double>(std::max(piece.phase, piece.weight - 1 - piece.phase)) / piece.weight;
    for (const Child child : {nodes_[i].light, nodes_[i].heavy}) {
      const double bound = bounds[i] * weight_of(child) / piece.weight + own;
      if (child < 0) {
        deviation_bound_ = std::max(deviation_bound_, bound);
      } else {
        bounds[static_cast<std::size_t>(child)] = bound;
      }
    }
  }
  deviation_bound_ *= 1 + 1e-9;  // what the sums above may have lost
}

/// Adds the pieces that begin when a slot is spent. What happens below a node depends only on the node's own clock, so
/// each node merges the deaths of its two children, in their clocks, into deaths in its own.
void EvenTree::place_deaths(std::span<const std::uint64_t> limits) {
  struct Death {
    std::uint64_t clock;
    std::uint32_t weight;
  };
  std::vector<std::vector<Death>> node_deaths(nodes_.size());
  const auto deaths_of = [&](Child child) -> std::vector<Death> {
    if (child >= 0) {
      return std::exchange(node_deaths[static_cast<std::size_t>(child)], {});
    }
    const std::uint64_t limit = limits[static_cast<std::size_t>(~child)];
    return limit >= kMaxSteps ? std::vector<Death>{} : std::vector<Death>{{limit, weight_of(child)}};
  };
  const std::vector<Piece> first_pieces = std::exchange(pieces_, {});
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::vector<Death> light_deaths = deaths_of(nodes_[i].light);
    const std::vector<Death> heavy_deaths = deaths_of(nodes_[i].heavy);
    std::vector<Death>& merged = node_deaths[i];
    merged.reserve(light_deaths.size() + heavy_deaths.size());
    const std::size_t first = pieces_.size();
    pieces_.push_back(first_pieces[i]);
    auto light = light_deaths.begin();
    auto heavy = heavy_deaths.begin();
    std::uint32_t weight = node_weights_[i];
    std::uint32_t light_weight = weight_of(nodes_[i].light);
    while (light != light_deaths.end() || heavy != heavy_deaths.end()) {
      const Piece piece = pieces_.back();
      const auto clock_of = [&piece](bool is_light, std::uint64_t count) {
        const std::uint64_t before = is_light ? piece.light : piece.clock - piece.light;
        return count <= before ? piece.clock : piece.reach(is_light, count);
      };
      const std::uint64_t light_clock = light == light_deaths.end() ? kEndless : clock_of(true, light->clock);
      const std::uint64_t heavy_clock = heavy == heavy_deaths.end() ? kEndless : clock_of(false, heavy->clock);
      const std::uint64_t clock = std::min(light_clock, heavy_clock);
      if (clock == kEndless) {
        break;
      }
      const bool is_light = light_clock <= heavy_clock;
      const std::uint32_t gone = is_light ? (light++)->weight : (heavy++)->weight;
      merged.push_back({clock, gone});
      weight -= gone;
      light_weight -= is_light ? gone : 0;
      const Piece::Dealt dealt = piece.dealt(clock);
      if (clock == piece.clock && pieces_.size() > first) {
        pieces_.pop_back();
      }
      // The remainder goes on as the same part of the new weight: no rounding starts afresh.
      const auto phase = static_cast<std::uint32_t>(std::uint64_t{dealt.remainder} * weight / piece.weight);
      pieces_.emplace_back(clock, dealt.light, light_weight, std::max(weight, 1U), phase);
    }
    nodes_[i].first_piece = static_cast<std::uint32_t>(first);
    nodes_[i].num_pieces = static_cast<std::uint32_t>(pieces_.size() - first);
  }
}

const EvenTree::Piece& EvenTree::piece_at(const Node& node, std::uint64_t clock) const noexcept {
  const Piece* const first = &pieces_[node.first_piece];
  if (node.num_pieces == 1) {
    return *first;
  }
  return *(std::ranges::upper_bound(first + 1, first + node.num_pieces, clock, {}, &Piece::clock) - 1);
}

/// The piece in which a child is drawn for the `index`-th time (from 0).
const EvenTree::Piece& EvenTree::piece_of_draw(const Node& node, bool is_light, std::uint64_t index) const noexcept {
  const Piece* const first = &pieces_[node.first_piece];
  if (node.num_pieces == 1) {
    return *first;
  }
  const auto draws_before = [is_light](const Piece& piece) {
    return is_light ? piece.light : piece.clock - piece.light;
  };
  return *(std::ranges::upper_bound(first + 1, first + node.num_pieces, index, {}, draws_before) - 1);
}

/// Draw number `clock` of a child: its slot, and how often the slot was drawn before.
SlotDraw EvenTree::draw_below(Child child, std::uint64_t clock) const noexcept {
  while (child >= 0) {
    const Node& node = nodes_[static_cast<std::size_t>(child)];
    const Piece& piece = piece_at(node, clock);
    const Piece::Dealt dealt = piece.dealt(clock);
    const bool is_light = dealt.remainder + piece.light_weight >= piece.weight;
    child = is_light ? node.light : node.heavy;
    clock = is_light ? dealt.light : clock - dealt.light;
  }
  return {~child, clock};
}

SlotDraw EvenTree::at(std::uint64_t turn) const noexcept {
  if (is_limited_) {
    return draw_below(root_, turn);
  }
  const SlotDraw draw = draw_below(root_, turn % total_);
  return {draw.slot, turn / total_ * weight_of(~draw.slot) + draw.index};
}

/// The steps from the root down to a slot.
class EvenTree::Path {
 public:
  Path(const EvenTree& tree, std::int32_t slot) noexcept {
    for (Parent up = tree.leaf_parents_[static_cast<std::size_t>(slot)]; up.node >= 0;
         up = tree.node_parents_[static_cast<std::size_t>(up.node)]) {
      steps_[num_left_++] = up;
    }
  }
  [[nodiscard]] bool is_done() const noexcept { return num_left_ == 0; }
  Parent next() noexcept { return steps_[--num_left_]; }

 private:
  std::array<Parent, kMaxDepth> steps_;
  std::size_t num_left_ = 0;
};

std::uint64_t EvenTree::count(std::int32_t slot, std::uint64_t turn) const noexcept {
  const std::uint64_t rounds = is_limited_ ? 0 : turn / total_;
  std::uint64_t clock = is_limited_ ? turn : turn % total_;
  for (Path path(*this, slot); !path.is_done();) {
    const Parent step = path.next();
    const std::uint64_t light = piece_at(nodes_[static_cast<std::size_t>(step.node)], clock).dealt(clock).light;
    clock = step.is_light ? light : clock - light;
  }
  return rounds * weight_of(~slot) + clock;
}

void EvenTree::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  const std::uint64_t rounds = is_limited_ ? 0 : turn / total_;
  std::vector<std::uint64_t> clocks(nodes_.size() + 1);
  const auto set = [&](Child child, std::uint64_t clock) {
    if (child < 0) {
      out[static_cast<std::size_t>(~child)] = rounds * weight_of(child) + clock;
    } else {
      clocks[static_cast<std::size_t>(child)] = clock;
    }
  };
  set(root_, is_limited_ ? turn : turn % total_);
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    const std::uint64_t light = piece_at(nodes_[i], clocks[i]).dealt(clocks[i]).light;
    set(nodes_[i].light, light);
    set(nodes_[i].heavy, clocks[i] - light);
  }
}

std::uint64_t EvenTree::position(std::int32_t slot, std::uint64_t index) const noexcept {
  const std::uint32_t weight = weight_of(~slot);
  if (is_limited_ && index >= limits_[static_cast<std::size_t>(slot)]) {
    return kEndless;
  }
  std::uint64_t clock = is_limited_ ? index : index % weight;
  for (Parent up = leaf_parents_[static_cast<std::size_t>(slot)]; up.node >= 0;
       up = node_parents_[static_cast<std::size_t>(up.node)]) {
    const Node& node = nodes_[static_cast<std::size_t>(up.node)];
    const std::uint64_t reached = piece_of_draw(node, up.is_light, clock).reach(up.is_light, clock + 1);
    if (reached == kEndless) {
      return kEndless;
    }
    clock = reached - 1;
  }
  return is_limited_ ? saturate(clock) : saturate(Wide{index / weight} * total_ + clock);
}

/// Follows a block of turns down to the slot that `goes_light(piece, clock, light)` chooses at each node, where `light`
/// of the node's first `clock` draws went to its light child; then the slot's draws in the block up again, each as its
/// place among the draws of the node: draw number e of a child of weight b is draw floor((e v + f) / b) of its parent,
/// where f is the parent's remainder at the block's begin for the heavy child, v - 1 less it for the light one.
/// Nothing if a slot is spent on the way within the block.
template <class GoesLight>
std::optional<EvenTree::SlotTurns> EvenTree::turns_below(std::uint64_t begin, std::uint32_t size,
                                                         GoesLight goes_light) const noexcept {
  struct Level {
    std::uint32_t weight;
    std::uint32_t share;
    std::uint32_t phase;
  };
  std::array<Level, kMaxDepth> levels;
  std::size_t depth = 0;
  const std::uint64_t rounds = is_limited_ ? 0 : begin / total_;
  std::uint64_t clock = is_limited_ ? begin : begin % total_;
  std::uint64_t num = size;
  Child child = root_;
  while (child >= 0) {
    const Node& node = nodes_[static_cast<std::size_t>(child)];
    const Piece& piece = piece_at(node, clock);
    if (&piece + 1 < &pieces_[node.first_piece] + node.num_pieces && (&piece)[1].clock < clock + num) [[unlikely]] {
      return std::nullopt;
    }
    const Piece::Dealt dealt = piece.dealt(clock);
    const std::uint64_t num_light = piece.dealt(clock + num).light - dealt.light;
    const bool is_light = goes_light(piece, clock, dealt.light);
    levels[depth++] = {piece.weight, is_light ? piece.light_weight : piece.weight - piece.light_weight,
                       is_light ? piece.weight - 1 - dealt.remainder : dealt.remainder};
    child = is_light ? node.light : node.heavy;
    clock = is_light ? dealt.light : clock - dealt.light;
    num = is_light ? num_light : num - num_light;
  }
  SlotTurns found{~child, rounds * weight_of(child) + clock, 0};
  if (num == 0) {
    return found;
  }
  std::array<std::uint64_t, kMaxBlock> places;
  std::iota(places.begin(), places.begin() + num, std::uint64_t{0});
  while (depth > 0) {
    const Level level = levels[--depth];
    const std::uint64_t reciprocal = reciprocal_of(level.share);
    for (std::size_t i = 0; i < num; ++i) {
      places[i] = divide(places[i] * level.weight + level.phase, level.share, reciprocal).quotient;
    }
  }
  for (std::size_t i = 0; i < num; ++i) {
    found.turns |= std::uint64_t{1} << places[i];
  }
  return found;
}

EvenTree::SlotTurns EvenTree::turns_by_filling(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const {
  std::array<std::int32_t, kMaxBlock> slots;
  fill(begin, std::span(slots).first(size));
  SlotTurns found{slot, count(slot, begin), 0};
  for (std::uint32_t i = 0; i < size; ++i) {
    found.turns |= std::uint64_t{slots[i] == slot} << i;
  }
  return found;
}

EvenTree::SlotTurns EvenTree::turns_of_turn(std::uint64_t begin, std::uint32_t size, std::uint32_t offset) const {
  std::uint64_t place = offset;  // of the turn among the node's draws in the block
  const auto found = turns_below(begin, size, [&place](const Piece& piece, std::uint64_t clock, std::uint64_t light) {
    const Piece::Dealt dealt = piece.dealt(clock + place);
    const bool is_light = dealt.remainder + piece.light_weight >= piece.weight;
    place = is_light ? dealt.light - light : place - (dealt.light - light);
    return is_light;
  });
  return found ? *found : turns_by_filling(begin, size, at(begin + offset).slot);
}

EvenTree::SlotTurns EvenTree::turns_of_slot(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const {
  Path path(*this, slot);
  const auto found =
      turns_below(begin, size, [&path](const Piece&, std::uint64_t, std::uint64_t) { return path.next().is_light; });
  return found ? *found : turns_by_filling(begin, size, slot);
}

/// Deals `num` draws of a child, from its draw number `clock` on, which stand at `positions` of the output. `positions`
/// and `spare` both hold `num` entries and are overwritten.
void EvenTree::deal(std::int32_t* out, Child child, std::uint64_t clock, std::uint16_t* positions, std::size_t num,
                    std::uint16_t* spare) const noexcept {
  if (num == 0) {
    return;
  }
  if (num == 1) {
    out[positions[0]] = draw_below(child, clock).slot;
    return;
  }
  if (child < 0) {
    for (std::size_t i = 0; i < num; ++i) {
      out[positions[i]] = ~child;
    }
    return;
  }
  const Node& node = nodes_[static_cast<std::size_t>(child)];
  const Piece* const end_piece = &pieces_[node.first_piece] + node.num_pieces;
  const Piece* piece = &piece_at(node, clock);
  const std::uint64_t light_before = piece->dealt(clock).light;
  const std::uint64_t num_light = piece_at(node, clock + num).dealt(clock + num).light - light_before;
  const bool ends_here = node.light < 0 && node.heavy < 0;
  std::uint16_t* light = spare;
  std::uint16_t* heavy = spare + num_light;
  for (std::size_t done = 0; done < num; ++piece) {
    const Piece::Dealt dealt = piece->dealt(clock + done);
    std::size_t size = num - done;
    if (piece + 1 != end_piece) {
      size = std::min<std::uint64_t>(size, piece[1].clock - clock - done);
    }
    const DealState state{dealt.remainder, piece->light_weight, piece->weight};
    if (ends_here) {
      split_slots(state, positions + done, size, ~node.light, ~node.heavy, out);
    } else {
      const std::uint64_t dealt_light = dealt.light - light_before;
      stable_split(state, positions + done, size, light + dealt_light, heavy + (done - dealt_light));
    }
    done += size;
  }
  if (!ends_here) {
    deal(out, node.light, light_before, light, num_light, positions);
    deal(out, node.heavy, clock - light_before, heavy, num - num_light, positions + num_light);
  }
}

void EvenTree::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  // Enough draws at once that most nodes get several, few enough that the positions fit 16 bits and the nearest cache.
  const std::size_t chunk =
      std::min<std::size_t>(std::clamp<std::size_t>(std::bit_ceil(weights_.size() * 16), 4096, 65536), slots.size());
  std::vector<std::uint16_t> buffer(2 * chunk);
  for (std::size_t done = 0; done < slots.size(); done += chunk) {
    const std::size_t num = std::min(chunk, slots.size() - done);
    const std::uint64_t turn = begin + done;
    std::iota(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(num), std::uint16_t{0});
    deal(slots.data() + done, root_, is_limited_ ? turn : turn % total_, buffer.data(), num, buffer.data() + chunk);
  }
}

}  // namespace mtf
