// What EVEN's tree answers: single draws, counts and positions, and draws in bulk.
#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "mtf/schedule/patterns/even_tree.hpp"
#include "mtf/schedule/patterns/stable_split.hpp"

namespace mtf {

namespace {

using Wide = unsigned __int128;

// A Huffman tree over integers of sum 2^31 is at most 45 deep: each two levels up at least add like Fibonacci numbers.
constexpr std::size_t kMaxDepth = 64;

// Turns of a block that a word has a bit for.
constexpr std::size_t kMaxBlock = 64;

}  // namespace

const EvenTree::Interval& EvenTree::interval_at(const Node& node, std::uint64_t clock) const noexcept {
  const Interval* const first = &intervals_[node.first_interval];
  if (node.num_intervals == 1) {
    return *first;
  }
  return *(std::ranges::upper_bound(first + 1, first + node.num_intervals, clock, {}, &Interval::clock) - 1);
}

/// The interval in which a child is drawn for the `index`-th time (from 0).
const EvenTree::Interval& EvenTree::interval_of_draw(const Node& node, bool is_light,
                                                     std::uint64_t index) const noexcept {
  const Interval* const first = &intervals_[node.first_interval];
  if (node.num_intervals == 1) {
    return *first;
  }
  const auto draws_before = [is_light](const Interval& interval) {
    return is_light ? interval.light : interval.clock - interval.light;
  };
  return *(std::ranges::upper_bound(first + 1, first + node.num_intervals, index, {}, draws_before) - 1);
}

/// Draw number `clock` of a child: its slot, and how often the slot was drawn before.
SlotDraw EvenTree::draw_below(Child child, std::uint64_t clock) const noexcept {
  while (child >= 0) {
    const Node& node = nodes_[static_cast<std::size_t>(child)];
    const Interval& interval = interval_at(node, clock);
    const Interval::Distributed distributed = interval.distributed(clock);
    const bool is_light = distributed.remainder + interval.light_weight >= interval.weight;
    child = is_light ? node.light : node.heavy;
    clock = is_light ? distributed.light : clock - distributed.light;
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
    const std::uint64_t light =
        interval_at(nodes_[static_cast<std::size_t>(step.node)], clock).distributed(clock).light;
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
    const std::uint64_t light = interval_at(nodes_[i], clocks[i]).distributed(clocks[i]).light;
    set(nodes_[i].light, light);
    set(nodes_[i].heavy, clocks[i] - light);
  }
}

std::uint64_t EvenTree::position(std::int32_t slot, std::uint64_t index) const noexcept {
  const std::uint32_t weight = weight_of(~slot);
  if (is_limited_ && index >= limits_[static_cast<std::size_t>(slot)]) {
    return kUnbounded;
  }
  std::uint64_t clock = is_limited_ ? index : index % weight;
  for (Parent up = leaf_parents_[static_cast<std::size_t>(slot)]; up.node >= 0;
       up = node_parents_[static_cast<std::size_t>(up.node)]) {
    const Node& node = nodes_[static_cast<std::size_t>(up.node)];
    const std::uint64_t reached = interval_of_draw(node, up.is_light, clock).reach(up.is_light, clock + 1);
    if (reached == kUnbounded) {
      return kUnbounded;
    }
    clock = reached - 1;
  }
  return is_limited_ ? saturate(clock) : saturate(Wide{index / weight} * total_ + clock);
}

/// Follows a block of turns down to the slot that `goes_light(interval, clock, light)` chooses at each node, where
/// `light` of the node's first `clock` draws went to its light child; then the slot's draws in the block up again, each
/// as its place among the draws of the node: draw number e of a child of weight b is draw floor((e v + f) / b) of its
/// parent, where f is the parent's remainder at the block's begin for the heavy child, v - 1 less it for the light one.
/// Nothing if a slot is exhausted on the way within the block.
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
    const Interval& interval = interval_at(node, clock);
    if (&interval + 1 < &intervals_[node.first_interval] + node.num_intervals && (&interval)[1].clock < clock + num)
        [[unlikely]] {
      return std::nullopt;
    }
    const Interval::Distributed distributed = interval.distributed(clock);
    const std::uint64_t num_light = interval.distributed(clock + num).light - distributed.light;
    const bool is_light = goes_light(interval, clock, distributed.light);
    levels[depth++] = {interval.weight, is_light ? interval.light_weight : interval.weight - interval.light_weight,
                       is_light ? interval.weight - 1 - distributed.remainder : distributed.remainder};
    child = is_light ? node.light : node.heavy;
    clock = is_light ? distributed.light : clock - distributed.light;
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
  const auto found =
      turns_below(begin, size, [&place](const Interval& interval, std::uint64_t clock, std::uint64_t light) {
        const Interval::Distributed distributed = interval.distributed(clock + place);
        const bool is_light = distributed.remainder + interval.light_weight >= interval.weight;
        place = is_light ? distributed.light - light : place - (distributed.light - light);
        return is_light;
      });
  return found ? *found : turns_by_filling(begin, size, at(begin + offset).slot);
}

EvenTree::SlotTurns EvenTree::turns_of_slot(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const {
  Path path(*this, slot);
  const auto found =
      turns_below(begin, size, [&path](const Interval&, std::uint64_t, std::uint64_t) { return path.next().is_light; });
  return found ? *found : turns_by_filling(begin, size, slot);
}

/// Distributes `num` draws of a child, from its draw number `clock` on, which stand at `positions` of the output.
/// `positions` and `spare` both hold `num` entries and are overwritten.
void EvenTree::distribute(std::int32_t* out, Child child, std::uint64_t clock, std::uint16_t* positions,
                          std::size_t num, std::uint16_t* spare) const noexcept {
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
  const Interval* const end_interval = &intervals_[node.first_interval] + node.num_intervals;
  const Interval* interval = &interval_at(node, clock);
  const std::uint64_t light_before = interval->distributed(clock).light;
  const std::uint64_t num_light = interval_at(node, clock + num).distributed(clock + num).light - light_before;
  const bool ends_here = node.light < 0 && node.heavy < 0;
  std::uint16_t* light = spare;
  std::uint16_t* heavy = spare + num_light;
  for (std::size_t done = 0; done < num; ++interval) {
    const Interval::Distributed distributed = interval->distributed(clock + done);
    std::size_t size = num - done;
    if (interval + 1 != end_interval) {
      size = std::min<std::uint64_t>(size, interval[1].clock - clock - done);
    }
    const DistributionState state{distributed.remainder, interval->light_weight, interval->weight};
    if (ends_here) {
      split_slots(state, positions + done, size, ~node.light, ~node.heavy, out);
    } else {
      const std::uint64_t light_so_far = distributed.light - light_before;
      stable_split(state, positions + done, size, light + light_so_far, heavy + (done - light_so_far));
    }
    done += size;
  }
  if (!ends_here) {
    distribute(out, node.light, light_before, light, num_light, positions);
    distribute(out, node.heavy, clock - light_before, heavy, num - num_light, positions + num_light);
  }
}

void EvenTree::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  if (period() != 0 && period() < slots.size()) {  // few units of weight, as 7:2:1: draw them once
    fill(begin, slots.first(period()));
    repeat_period(slots, period());
    return;
  }
  // Enough draws at once that most nodes get several, few enough that the positions fit 16 bits and the nearest cache.
  const std::size_t chunk =
      std::min<std::size_t>(std::clamp<std::size_t>(std::bit_ceil(weights_.size() * 16), 4096, 65536), slots.size());
  std::vector<std::uint16_t> buffer(2 * chunk);
  for (std::size_t done = 0; done < slots.size(); done += chunk) {
    const std::size_t num = std::min(chunk, slots.size() - done);
    const std::uint64_t turn = begin + done;
    std::iota(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(num), std::uint16_t{0});
    distribute(slots.data() + done, root_, is_limited_ ? turn : turn % total_, buffer.data(), num,
               buffer.data() + chunk);
  }
}

}  // namespace mtf
