// Random weights, limits and bursts: every way to look at a pattern shows what a slow cursor draws, at the start and
// far away; EVEN keeps to its bound at every step, SHUFFLED to EVEN's quotas in every block.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "choices.hpp"
#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"
#include "slow_pattern.hpp"

namespace {

using fuzz::Choices;
using fuzz::Counts;
using fuzz::kUnbounded;
using fuzz::require;
using fuzz::Slot;
using Slots = std::vector<Slot>;

constexpr std::size_t kMostSteps = 160;

struct Shape {
  std::vector<std::uint32_t> weights;
  std::vector<std::string> names;
  Counts limits;  // empty: none
  std::uint64_t burst = 1;
  mtf::Key key;

  [[nodiscard]] std::size_t size() const { return weights.size(); }
  [[nodiscard]] Counts all_limits() const { return limits.empty() ? Counts(size(), kUnbounded) : limits; }
  /// As many turns as the limits need.
  [[nodiscard]] Counts turn_limits() const {
    Counts turns = limits;
    for (std::uint64_t& limit : turns) {
      limit = limit == kUnbounded ? kUnbounded : (limit + burst - 1) / burst;
    }
    return std::ranges::all_of(turns, [](std::uint64_t turn) { return turn == kUnbounded; }) ? Counts{} : turns;
  }
};

Shape make_shape(Choices& choose) {
  Shape shape;
  const std::uint64_t most = choose.one_of<std::uint64_t>({1, 2, 7, 1000, std::uint64_t{1} << 24});
  const std::size_t n = 1 + choose.below(choose.one_in(4) ? 40 : 6);
  for (std::size_t i = 0; i < n; ++i) {
    shape.weights.push_back(static_cast<std::uint32_t>(1 + choose.below(most)));
  }
  if (choose.one_in(2)) {
    for (std::size_t i = 0; i < n; ++i) {
      shape.names.push_back("source " + std::to_string((i * 7 + 3) % n * 10 + i));
    }
  }
  if (choose.one_in(2)) {
    const std::uint64_t longest = 1 + choose.below(60);
    for (std::size_t i = 0; i < n; ++i) {
      shape.limits.push_back(choose.one_in(8) ? kUnbounded : 1 + choose.below(longest));
    }
  }
  shape.burst = 1 + choose.below(choose.one_in(4) ? 100 : 5);
  shape.key = {choose.below(std::uint64_t{1} << 32)};
  return shape;
}

Slots cursor(fuzz::SlowPattern pattern) {
  Slots out;
  while (out.size() < kMostSteps) {
    const auto slot = pattern.peek();
    if (!slot) {
      break;
    }
    out.push_back(*slot);
    pattern.take();
  }
  return out;
}

/// All views of the first steps; `expected` holds all there are, or kMostSteps.
template <mtf::Pattern P>
void compare(const P& pattern, const Slots& expected, Choices& choose) {
  // RANDOM draws until it finds a position: few of them.
  constexpr bool kIsWalked = std::is_same_v<P, mtf::WeightedRandom>;
  const bool is_all = expected.size() < kMostSteps;
  require(is_all ? pattern.length() == expected.size() : pattern.length() >= expected.size());
  Slots filled(expected.size());
  for (std::size_t begin = 0; begin < filled.size();) {
    const std::size_t num = std::min(filled.size() - begin, std::size_t{1} + choose.below(200));
    pattern.fill(begin, std::span(filled).subspan(begin, num));
    begin += num;
  }
  require(filled == expected);

  Counts counts(pattern.num_slots());
  Counts seen(counts.size());
  for (std::uint64_t step = 0; step < expected.size(); ++step) {
    pattern.counts(step, seen);
    require(seen == counts);
    const Slot slot = expected[step];
    const std::uint64_t index = counts[static_cast<std::size_t>(slot)]++;
    require(pattern.at(step) == mtf::SlotDraw{slot, index});
    if (kIsWalked && step % 40 != 0) {
      continue;
    }
    require(pattern.position(slot, index) == step);
    require(pattern.count(slot, step) == index && pattern.count(slot, step + 1) == index + 1);
  }
  if (kIsWalked && !is_all) {
    return;
  }
  for (std::size_t slot = 0; slot < counts.size(); ++slot) {
    const std::uint64_t next = pattern.position(static_cast<Slot>(slot), counts[slot]);
    require(is_all ? next == kUnbounded : next >= expected.size());
  }
}

/// Steps far away, where nothing walks to: the views agree with one another.
template <mtf::Pattern P>
void look_far(const P& pattern, std::uint64_t begin) {
  Slots near(40);
  pattern.fill(begin, near);
  Counts counts(pattern.num_slots());
  pattern.counts(begin, counts);
  std::uint64_t sum = 0;
  for (const std::uint64_t count : counts) {
    sum += count;
  }
  require(sum == begin);
  for (std::size_t i = 0; i < near.size(); ++i) {
    const std::uint64_t index = counts[static_cast<std::size_t>(near[i])]++;
    require(pattern.at(begin + i) == mtf::SlotDraw{near[i], index});
    require(pattern.position(near[i], index) == begin + i);
    require(pattern.count(near[i], begin + i + 1) == index + 1);
  }
}

/// No slot is further from its share of the steps than the pattern says, and that is within the proven bound.
void check_even(const Shape& shape, const mtf::WeightedEven& pattern, const Slots& expected) {
  const auto burst = static_cast<double>(shape.burst);
  require(pattern.deviation_bound() <= 1.68 * burst);
  const double own = fuzz::SlowEven(shape.weights, shape.names, shape.key).deviation_bound(shape.size()) * burst;
  require(std::abs(pattern.deviation_bound() - own) <= 1e-6 * (1 + own));
  if (!shape.limits.empty()) {
    return;
  }
  double total = 0;
  for (const std::uint32_t weight : shape.weights) {
    total += weight;
  }
  Counts counts(shape.size());
  for (std::size_t step = 0; step < expected.size(); ++step) {
    ++counts[static_cast<std::size_t>(expected[step])];
    for (std::size_t slot = 0; slot < counts.size(); ++slot) {
      const double ideal = static_cast<double>(step + 1) * shape.weights[slot] / total;
      require(std::abs(static_cast<double>(counts[slot]) - ideal) <= pattern.deviation_bound() + 1e-6);
    }
  }
}

/// Each block of turns holds what EVEN draws in it.
void check_quotas(const Shape& shape) {
  mtf::Key key = shape.key;
  const Counts limits = shape.turn_limits();
  const mtf::ShuffledBlocks blocks(mtf::EvenDraws(shape.weights, shape.names, limits, key), key);
  const std::size_t num_turns = std::min<std::uint64_t>(blocks.length(), 3 * mtf::ShuffledBlocks::kBlockSize);
  Slots shuffled(num_turns);
  blocks.fill(0, shuffled);
  fuzz::SlowPattern even(std::make_unique<fuzz::SlowEven>(shape.weights, shape.names, key), 1,
                         limits.empty() ? Counts(shape.size(), kUnbounded) : limits);
  Counts balance(shape.size());
  for (std::size_t turn = 0; turn < num_turns; ++turn) {
    const auto slot = even.peek();
    require(slot.has_value());
    ++balance[static_cast<std::size_t>(*slot)];
    even.take();
    --balance[static_cast<std::size_t>(shuffled[turn])];
    if ((turn + 1) % mtf::ShuffledBlocks::kBlockSize == 0 || turn + 1 == num_turns) {
      const bool is_end = (turn + 1) % mtf::ShuffledBlocks::kBlockSize == 0 || turn + 1 == blocks.length();
      require(!is_end || std::ranges::all_of(balance, [](std::uint64_t left) { return left == 0; }));
    }
  }
}

void check_sequential(const Shape& shape, Choices& choose) {
  const Counts blocks = shape.all_limits();
  Counts later;
  if (choose.one_in(2)) {
    for (std::size_t i = 0; i < shape.size(); ++i) {
      later.push_back(choose.below(9));
    }
  }
  const bool has_later = std::ranges::any_of(later, [](std::uint64_t block) { return block > 0; });
  Slots expected = cursor({std::make_unique<fuzz::SlowBlocks>(), 1, blocks});
  for (std::size_t last = ~std::size_t{0}; has_later && expected.size() < kMostSteps && last != expected.size();) {
    last = expected.size();
    const Slots round = cursor({std::make_unique<fuzz::SlowBlocks>(), 1, later});
    expected.insert(expected.end(), round.begin(), round.end());
  }
  expected.resize(std::min(expected.size(), kMostSteps));
  compare(mtf::Sequential(blocks, later), expected, choose);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choose(std::span(data, size));
  const std::uint64_t kind = choose.below(6);
  const Shape shape = make_shape(choose);
  const std::uint64_t far = choose.below(std::uint64_t{1} << 32) << choose.below(24);
  const auto n = static_cast<std::uint32_t>(shape.size());
  const auto slow = [&](std::unique_ptr<fuzz::SlowTurns> turns) {
    return cursor({std::move(turns), shape.burst, shape.all_limits()});
  };
  const bool is_endless = std::ranges::find(shape.limits, kUnbounded) != shape.limits.end() || shape.limits.empty();
  switch (kind) {
    case 0: {
      Slots entries(n);
      for (std::uint32_t i = 0; i < n; ++i) {
        entries[i] = static_cast<Slot>(i);
      }
      const mtf::RoundRobin pattern(n, shape.burst, shape.limits);
      compare(pattern, slow(std::make_unique<fuzz::SlowRotation>(entries)), choose);
      if (is_endless) {
        look_far(pattern, far);
      }
      break;
    }
    case 1: {
      // Every slot is somewhere in the pattern, as the schedule makes it.
      Slots entries;
      for (std::uint32_t i = 0; i < n; ++i) {
        entries.push_back(static_cast<Slot>(i));
      }
      for (std::uint64_t i = choose.below(12); i > 0; --i) {
        const auto entry = static_cast<Slot>(choose.below(n));
        entries.insert(entries.begin() + static_cast<std::ptrdiff_t>(choose.below(entries.size() + 1)), entry);
      }
      const mtf::Alternating pattern(entries, n, shape.burst, shape.limits);
      compare(pattern, slow(std::make_unique<fuzz::SlowRotation>(entries)), choose);
      if (is_endless) {
        look_far(pattern, far);
      }
      break;
    }
    case 2:
      check_sequential(shape, choose);
      break;
    case 3: {
      const mtf::WeightedRandom pattern(shape.weights, shape.burst, shape.limits, shape.key);
      compare(pattern, slow(std::make_unique<fuzz::SlowRandom>(shape.weights, shape.key)), choose);
      break;
    }
    case 4: {
      const mtf::WeightedShuffled pattern(shape.weights, shape.names, shape.burst, shape.limits, shape.key);
      mtf::ShuffledBlocks blocks(mtf::EvenDraws(shape.weights, shape.names, shape.turn_limits(), shape.key), shape.key);
      compare(pattern, slow(std::make_unique<fuzz::CoreShuffled>(std::move(blocks))), choose);
      check_quotas(shape);
      if (is_endless) {
        look_far(pattern, far);
      }
      break;
    }
    default: {
      const mtf::WeightedEven pattern(shape.weights, shape.names, shape.burst, shape.limits, shape.key);
      const Slots expected = slow(std::make_unique<fuzz::SlowEven>(shape.weights, shape.names, shape.key));
      compare(pattern, expected, choose);
      check_even(shape, pattern, expected);
      if (is_endless) {
        look_far(pattern, far);
      }
      break;
    }
  }
  return 0;
}
