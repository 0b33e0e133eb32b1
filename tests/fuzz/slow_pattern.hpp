/// The meaning of every order, one draw after the other and as slow as it likes. Nothing is computed ahead, no index is
/// jumped to: what the core's patterns are compared with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "mtf/random/alias_table.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"

namespace fuzz {

using mtf::kUnbounded;
using Slot = std::int32_t;
using Counts = std::vector<std::uint64_t>;

/// Decides turn after turn. `lives[slot]`: turns that the slot still gives, of which the caller keeps count.
class SlowTurns {
 public:
  virtual ~SlowTurns() = default;
  virtual Slot next(const Counts& lives) = 0;
  virtual void leave(Slot) {}
  [[nodiscard]] virtual std::unique_ptr<SlowTurns> copy() const = 0;
};

template <class Self>
class Copied : public SlowTurns {
 public:
  [[nodiscard]] std::unique_ptr<SlowTurns> copy() const override {
    return std::make_unique<Self>(static_cast<const Self&>(*this));
  }
};

/// The entries of a list in order, again and again; those of exhausted slots are passed over.
class SlowRotation : public Copied<SlowRotation> {
 public:
  explicit SlowRotation(std::vector<Slot> entries) : entries_(std::move(entries)) {}
  Slot next(const Counts& lives) override {
    while (true) {
      const Slot slot = entries_[at_];
      at_ = (at_ + 1) % entries_.size();
      if (lives[static_cast<std::size_t>(slot)] > 0) {
        return slot;
      }
    }
  }

 private:
  std::vector<Slot> entries_;
  std::size_t at_ = 0;
};

/// One slot after the other until it is exhausted.
class SlowBlocks : public Copied<SlowBlocks> {
 public:
  Slot next(const Counts& lives) override {
    return static_cast<Slot>(std::ranges::find_if(lives, [](std::uint64_t left) { return left > 0; }) - lives.begin());
  }
};

/// Independent draws: a word of the key's stream looked up in the table, drawn once more among the active where it
/// falls on an exhausted slot.
class SlowRandom : public Copied<SlowRandom> {
 public:
  SlowRandom(std::span<const std::uint32_t> weights, mtf::Key key)
      : weights_(mtf::apportion(std::vector<std::uint64_t>(weights.begin(), weights.end()), mtf::kMaxTotalWeight)),
        table_(weights_),
        key_(key) {}
  Slot next(const Counts& lives) override {
    mtf::Stream words(key_, turn_ / 2);
    const std::uint64_t pair = words.next();
    auto slot = static_cast<Slot>(table_(static_cast<std::uint32_t>(turn_ % 2 == 0 ? pair : pair >> 32)));
    if (lives[static_cast<std::size_t>(slot)] == 0) {
      std::uint64_t total = 0;
      for (std::size_t i = 0; i < weights_.size(); ++i) {
        total += lives[i] > 0 ? weights_[i] : 0;
      }
      std::uint64_t unit = mtf::Stream(mtf::fold_in(mtf::fold_in(key_, "again"), turn_)).bounded(total);
      slot = 0;
      for (std::size_t i = 0; i < weights_.size(); ++i, ++slot) {
        if (lives[i] == 0) {
          continue;
        }
        if (unit < weights_[i]) {
          break;
        }
        unit -= weights_[i];
      }
    }
    ++turn_;
    return slot;
  }

 private:
  std::vector<std::uint32_t> weights_;
  mtf::AliasTable table_;
  mtf::Key key_;
  std::uint64_t turn_ = 0;
};

/// A tree of dealers: each adds its lighter child's weight to a remainder and gives the draw to that child when the
/// remainder reaches its own weight. Huffman's tree by looking for the two lightest again and again.
class SlowEven : public Copied<SlowEven> {
 public:
  SlowEven(std::span<const std::uint32_t> weights, std::span<const std::string> names, mtf::Key key) {
    nodes_.resize(weights.size());
    std::vector<std::size_t> waiting(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      nodes_[i].weight = weights[i];
    }
    std::iota(waiting.begin(), waiting.end(), 0U);
    std::ranges::stable_sort(waiting, [&](std::size_t a, std::size_t b) {
      return weights[a] != weights[b] ? weights[a] < weights[b] : !names.empty() && names[a] < names[b];
    });
    shuffle_ties(waiting, mtf::fold_in(key, "ties"));
    while (waiting.size() > 1) {
      const std::size_t light = take_lightest(waiting);
      const std::size_t heavy = take_lightest(waiting);
      nodes_[light].parent = nodes_[heavy].parent = static_cast<int>(nodes_.size());
      const std::uint64_t weight = nodes_[light].weight + nodes_[heavy].weight;
      waiting.push_back(nodes_.size());
      nodes_.push_back({.weight = weight, .light = static_cast<int>(light), .heavy = static_cast<int>(heavy)});
    }
    draw_phases(weights.size(), mtf::fold_in(key, "phases"));
  }

  Slot next(const Counts&) override {
    std::size_t node = nodes_.size() - 1;
    while (nodes_[node].light >= 0) {
      Node& here = nodes_[node];
      here.remainder += nodes_[static_cast<std::size_t>(here.light)].weight;
      const bool to_light = here.remainder >= here.weight;
      here.remainder -= to_light ? here.weight : 0;
      node = static_cast<std::size_t>(to_light ? here.light : here.heavy);
    }
    return static_cast<Slot>(node);
  }

  void leave(Slot slot) override {
    const std::uint64_t gone = nodes_[static_cast<std::size_t>(slot)].weight;
    for (int node = slot; node >= 0; node = nodes_[static_cast<std::size_t>(node)].parent) {
      Node& here = nodes_[static_cast<std::size_t>(node)];
      here.remainder = here.remainder * (here.weight - gone) / here.weight;
      here.weight -= gone;
    }
  }

  /// The furthest that a slot of weight w may be from c w / W: the sum of what each dealer above it may be off.
  [[nodiscard]] double deviation_bound(std::size_t num_slots) const {
    double largest = 0;
    for (std::size_t slot = 0; slot < num_slots; ++slot) {
      double bound = 0;
      for (std::size_t child = slot; nodes_[child].parent >= 0;
           child = static_cast<std::size_t>(nodes_[child].parent)) {
        const Node& up = nodes_[static_cast<std::size_t>(nodes_[child].parent)];
        const double off = static_cast<double>(std::max(up.remainder, up.weight - 1 - up.remainder));
        bound += off / static_cast<double>(up.weight) * static_cast<double>(nodes_[slot].weight) /
                 static_cast<double>(nodes_[child].weight);
      }
      largest = std::max(largest, bound);
    }
    return largest;
  }

 private:
  struct Node {
    std::uint64_t weight = 0;
    std::uint64_t remainder = 0;
    int light = -1;
    int heavy = -1;
    int parent = -1;
  };

  void shuffle_ties(std::vector<std::size_t>& leaves, mtf::Key key) const {
    mtf::Stream stream(key);
    for (std::size_t begin = 0; begin < leaves.size();) {
      std::size_t num = 1;
      while (begin + num < leaves.size() && nodes_[leaves[begin + num]].weight == nodes_[leaves[begin]].weight) {
        ++num;
      }
      for (std::size_t i = num; i-- > 1;) {
        std::swap(leaves[begin + i], leaves[begin + stream.bounded(i + 1)]);
      }
      begin += num;
    }
  }

  /// The first of the lightest; leaves stand before inner nodes.
  std::size_t take_lightest(std::vector<std::size_t>& waiting) const {
    const auto lightest =
        std::ranges::min_element(waiting, {}, [this](std::size_t node) { return nodes_[node].weight; });
    const std::size_t node = *lightest;
    waiting.erase(lightest);
    return node;
  }

  /// Remainders to begin with, around the middle, as far from it as keeps the deviation of every slot within 1.5.
  void draw_phases(std::size_t num_slots, mtf::Key key) {
    constexpr std::uint64_t kOne = std::uint64_t{1} << 62;
    std::uint64_t largest = 1;
    for (std::size_t slot = 0; slot < num_slots; ++slot) {
      std::uint64_t sum = 0;
      for (std::size_t u = slot; nodes_[u].parent >= 0; u = static_cast<std::size_t>(nodes_[u].parent)) {
        sum += kOne / nodes_[u].weight;
      }
      largest = std::max(largest, sum * nodes_[slot].weight);
    }
    using Wide = unsigned __int128;
    const Wide room = Wide{3} * kOne > largest ? Wide{3} * kOne - largest : 0;
    mtf::Stream stream(key);
    for (std::size_t i = num_slots; i < nodes_.size(); ++i) {
      const std::uint64_t weight = nodes_[i].weight;
      const auto spread = static_cast<std::uint64_t>(std::min<Wide>(room * weight / (Wide{2} * largest), weight / 2));
      const std::uint64_t middle = (weight - 1) / 2;
      const std::uint64_t lowest = middle > spread ? middle - spread : 0;
      const std::uint64_t highest = std::min(weight - 1, middle + spread);
      nodes_[i].remainder = lowest + stream.bounded(highest - lowest + 1);
    }
  }

  std::vector<Node> nodes_;  // leaves first, the root last
};

/// The core's own order of blocks, turn by turn; its quotas are checked where it is compared with SlowEven.
class CoreShuffled : public Copied<CoreShuffled> {
 public:
  explicit CoreShuffled(mtf::ShuffledBlocks blocks) : blocks_(std::move(blocks)) {}
  Slot next(const Counts&) override { return blocks_.at(turn_++).slot; }

 private:
  mtf::ShuffledBlocks blocks_;
  std::uint64_t turn_ = 0;
};

/// The core's own draws after a change of weights, turn by turn; deficits are counted by SlowSchedule.
class CoreEven : public Copied<CoreEven> {
 public:
  explicit CoreEven(mtf::EvenDraws draws) : draws_(std::move(draws)) {}
  Slot next(const Counts&) override { return draws_.at(turn_++).slot; }

 private:
  mtf::EvenDraws draws_;
  std::uint64_t turn_ = 0;
};

/// Turns stretched to bursts, within limits, step by step. Value semantics.
class SlowPattern {
 public:
  /// `limits`: steps that each slot may give, kUnbounded for no end.
  SlowPattern(std::unique_ptr<SlowTurns> turns, std::uint64_t burst, Counts limits)
      : turns_(std::move(turns)), burst_(burst), left_(std::move(limits)) {
    for (const std::uint64_t limit : left_) {
      lives_.push_back(limit == kUnbounded ? kUnbounded : (limit + burst - 1) / burst);
    }
  }
  SlowPattern(const SlowPattern& other)
      : turns_(other.turns_->copy()),
        burst_(other.burst_),
        left_(other.left_),
        lives_(other.lives_),
        slot_(other.slot_),
        in_turn_(other.in_turn_),
        num_turns_(other.num_turns_) {}
  SlowPattern(SlowPattern&&) = default;
  SlowPattern& operator=(SlowPattern other) noexcept {
    std::swap(turns_, other.turns_);
    std::swap(burst_, other.burst_);
    std::swap(left_, other.left_);
    std::swap(lives_, other.lives_);
    std::swap(slot_, other.slot_);
    std::swap(in_turn_, other.in_turn_);
    std::swap(num_turns_, other.num_turns_);
    return *this;
  }

  /// Who is next; nothing when all are exhausted. Asking twice is the same as once.
  std::optional<Slot> peek() {
    if (in_turn_ > 0 && left_[static_cast<std::size_t>(slot_)] > 0) {
      return slot_;
    }
    if (std::ranges::all_of(left_, [](std::uint64_t left) { return left == 0; })) {
      return std::nullopt;
    }
    slot_ = turns_->next(lives_);
    in_turn_ = burst_;
    std::uint64_t& lives = lives_[static_cast<std::size_t>(slot_)];
    if (lives != kUnbounded && --lives == 0) {
      turns_->leave(slot_);
    }
    return slot_;
  }

  /// Draws the slot that `peek` named.
  void take() {
    num_turns_ += in_turn_ == burst_ ? 1 : 0;
    --in_turn_;
    std::uint64_t& left = left_[static_cast<std::size_t>(slot_)];
    left -= left == kUnbounded ? 0 : 1;
  }

  /// Turns of which a step was drawn.
  [[nodiscard]] std::uint64_t num_turns() const noexcept { return num_turns_; }

  /// A slot that turned out to be at its end.
  void spend(Slot slot) {
    left_[static_cast<std::size_t>(slot)] = 0;
    lives_[static_cast<std::size_t>(slot)] = 0;
  }

 private:
  std::unique_ptr<SlowTurns> turns_;
  std::uint64_t burst_;
  Counts left_;
  Counts lives_;
  Slot slot_ = 0;
  std::uint64_t in_turn_ = 0;
  std::uint64_t num_turns_ = 0;
};

}  // namespace fuzz
