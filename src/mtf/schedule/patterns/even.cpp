#include "mtf/schedule/patterns/even.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace mtf {

namespace {

using Signed = __int128;

/// The rank of each slot by name, or by number where there are no names: which of two goes first that have the
/// same.
std::vector<std::uint32_t> ranks_of(std::size_t num_slots, std::span<const std::string> names) {
  std::vector<std::uint32_t> order(num_slots);
  std::iota(order.begin(), order.end(), 0U);
  if (!names.empty()) {
    std::ranges::stable_sort(order, {}, [&](std::uint32_t slot) -> const std::string& { return names[slot]; });
  }
  std::vector<std::uint32_t> ranks(num_slots);
  for (std::uint32_t rank = 0; rank < num_slots; ++rank) {
    ranks[order[rank]] = rank;
  }
  return ranks;
}

/// The slots' deficits, exactly: in units of 2^-kDeficitBits / W turns.
class Deficits {
 public:
  Deficits(std::span<const std::uint32_t> weights, std::span<const std::string> names,
           std::span<const std::int64_t> deficits)
      : weights_(weights),
        total_(std::accumulate(weights.begin(), weights.end(), std::int64_t{0})),
        ranks_(ranks_of(weights.size(), names)),
        deficits_(weights.size()) {
    for (std::size_t slot = 0; slot < deficits_.size(); ++slot) {
      deficits_[slot] = Signed{deficits[slot]} * total_;
      largest_ = std::max(largest_, magnitude(deficits_[slot]));
    }
  }

  /// One turn: each slot's share is added, and the slot with the largest deficit then is drawn.
  std::size_t draw() {
    std::size_t drawn = 0;
    for (std::size_t slot = 0; slot < deficits_.size(); ++slot) {
      deficits_[slot] += Signed{weights_[slot]} << kDeficitBits;
      const bool is_more = deficits_[slot] > deficits_[drawn];
      drawn = is_more || (deficits_[slot] == deficits_[drawn] && ranks_[slot] < ranks_[drawn]) ? slot : drawn;
    }
    deficits_[drawn] -= Signed{total_} << kDeficitBits;
    for (const Signed deficit : deficits_) {
      largest_ = std::max(largest_, magnitude(deficit));
    }
    return drawn;
  }

  /// In units of 2^-kDeficitBits turns, rounded towards 0.
  void write(std::span<std::int64_t> deficits) const {
    for (std::size_t slot = 0; slot < deficits_.size(); ++slot) {
      deficits[slot] = static_cast<std::int64_t>(deficits_[slot] / total_);
    }
  }

  /// The largest deficit in turns, of either sign, that there was at any turn.
  [[nodiscard]] double largest() const {
    return std::ldexp(static_cast<double>(largest_) / static_cast<double>(total_), -kDeficitBits);
  }

 private:
  static Signed magnitude(Signed deficit) { return deficit < 0 ? -deficit : deficit; }

  std::span<const std::uint32_t> weights_;
  std::int64_t total_;
  std::vector<std::uint32_t> ranks_;
  std::vector<Signed> deficits_;
  Signed largest_ = 0;
};

}  // namespace

EvenDraws::EvenDraws(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                     std::span<const std::uint64_t> limits, Key key, std::span<const std::int64_t> deficits)
    : tree_(deficits.empty() ? EvenTree(weights, names, limits, key) : EvenTree(weights, names, key)) {
  if (!deficits.empty()) {
    catch_up(weights, names, limits, deficits);
  }
  deviation_bound_ = std::max(deviation_bound_, tree_.deviation_bound());
}

/// Draws the turns before the tree and starts the tree behind them. They end early with the last draw of a slot.
void EvenDraws::catch_up(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                         std::span<const std::uint64_t> limits, std::span<const std::int64_t> deficits) {
  Deficits exact(weights, names, deficits);
  std::vector<std::int64_t> now(deficits.begin(), deficits.end());
  std::vector<std::uint64_t> left(limits.begin(), limits.end());
  num_caught_up_of_.resize(weights.size());
  const std::size_t at_least = std::min(weights.size(), kMaxCatchUp);
  bool may_go_on = weights.size() > 1;
  while (true) {
    const bool must_end = !may_go_on || caught_up_.size() == kMaxCatchUp;
    if (must_end || caught_up_.size() >= at_least) {
      exact.write(now);
      if (tree_.start_from(now) || must_end) {
        break;
      }
    }
    const std::size_t slot = exact.draw();
    caught_up_.push_back(static_cast<std::int32_t>(slot));
    ++num_caught_up_of_[slot];
    const bool is_limited = !left.empty() && left[slot] < kMaxSteps;
    if (is_limited) {
      --left[slot];
    }
    may_go_on = !is_limited || left[slot] > 0;
  }
  num_caught_up_ = caught_up_.size();
  deviation_bound_ = exact.largest() * (1 + 1e-9);
  tree_.set_limits(left);
}

std::uint64_t EvenDraws::count_caught_up(std::int32_t slot, std::uint64_t turn) const noexcept {
  return static_cast<std::uint64_t>(
      std::count(caught_up_.begin(), caught_up_.begin() + static_cast<std::ptrdiff_t>(turn), slot));
}

SlotDraw EvenDraws::at(std::uint64_t turn) const noexcept {
  if (num_caught_up_ == 0) [[likely]] {
    return tree_.at(turn);
  }
  if (turn < num_caught_up_) {
    const std::int32_t slot = caught_up_[turn];
    return {slot, count_caught_up(slot, turn)};
  }
  SlotDraw draw = tree_.at(turn - num_caught_up_);
  draw.index += num_caught_up_of_[static_cast<std::size_t>(draw.slot)];
  return draw;
}

void EvenDraws::fill(std::uint64_t begin, std::span<std::int32_t> slots) const {
  if (begin < num_caught_up_) {
    const std::uint64_t num = std::min<std::uint64_t>(slots.size(), num_caught_up_ - begin);
    std::copy_n(caught_up_.begin() + static_cast<std::ptrdiff_t>(begin), num, slots.begin());
    slots = slots.subspan(num);
    begin += num;
  }
  if (!slots.empty()) {
    tree_.fill(begin - num_caught_up_, slots);
  }
}

void EvenDraws::counts(std::uint64_t turn, std::span<std::uint64_t> out) const {
  if (turn < num_caught_up_) {
    std::ranges::fill(out, std::uint64_t{0});
    for (const std::int32_t slot : std::span(caught_up_).first(turn)) {
      ++out[static_cast<std::size_t>(slot)];
    }
    return;
  }
  tree_.counts(turn - num_caught_up_, out);
  for (std::size_t slot = 0; slot < num_caught_up_of_.size(); ++slot) {
    out[slot] += num_caught_up_of_[slot];
  }
}

std::uint64_t EvenDraws::count(std::int32_t slot, std::uint64_t turn) const noexcept {
  if (num_caught_up_ == 0) [[likely]] {
    return tree_.count(slot, turn);
  }
  if (turn < num_caught_up_) {
    return count_caught_up(slot, turn);
  }
  return num_caught_up_of_[static_cast<std::size_t>(slot)] + tree_.count(slot, turn - num_caught_up_);
}

std::uint64_t EvenDraws::position(std::int32_t slot, std::uint64_t index) const noexcept {
  if (num_caught_up_ == 0) [[likely]] {
    return tree_.position(slot, index);
  }
  const std::uint64_t before = num_caught_up_of_[static_cast<std::size_t>(slot)];
  if (index >= before) {
    return add_steps(num_caught_up_, tree_.position(slot, index - before));
  }
  std::uint64_t turn = 0;
  for (std::uint64_t left = index; caught_up_[turn] != slot || left-- > 0;) {
    ++turn;
  }
  return turn;
}

EvenTree::SlotTurns EvenDraws::turns_by_filling(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const {
  std::array<std::int32_t, 64> slots;
  fill(begin, std::span(slots).first(size));
  EvenTree::SlotTurns found{slot, count(slot, begin), 0};
  for (std::uint32_t i = 0; i < size; ++i) {
    found.turns |= std::uint64_t{slots[i] == slot} << i;
  }
  return found;
}

EvenTree::SlotTurns EvenDraws::turns_of_turn(std::uint64_t begin, std::uint32_t size, std::uint32_t offset) const {
  if (num_caught_up_ == 0) [[likely]] {
    return tree_.turns_of_turn(begin, size, offset);
  }
  if (begin < num_caught_up_) {
    return turns_by_filling(begin, size, at(begin + offset).slot);
  }
  EvenTree::SlotTurns found = tree_.turns_of_turn(begin - num_caught_up_, size, offset);
  found.count += num_caught_up_of_[static_cast<std::size_t>(found.slot)];
  return found;
}

EvenTree::SlotTurns EvenDraws::turns_of_slot(std::uint64_t begin, std::uint32_t size, std::int32_t slot) const {
  if (num_caught_up_ == 0) [[likely]] {
    return tree_.turns_of_slot(begin, size, slot);
  }
  if (begin < num_caught_up_) {
    return turns_by_filling(begin, size, slot);
  }
  EvenTree::SlotTurns found = tree_.turns_of_slot(begin - num_caught_up_, size, slot);
  found.count += num_caught_up_of_[static_cast<std::size_t>(slot)];
  return found;
}

WeightedEven::WeightedEven(std::span<const std::uint32_t> weights, std::span<const std::string> names,
                           std::uint64_t burst, std::span<const std::uint64_t> limits, Key key,
                           std::span<const std::int64_t> deficits)
    : WithBursts(EvenDraws(weights, names, turn_limits(limits, burst, weights.size()), key, deficits), burst, limits),
      // Inside a turn a slot's draws move in a straight line between the turn's two ends.
      deviation_bound_(turns().deviation_bound() * static_cast<double>(burst)) {}

}  // namespace mtf
