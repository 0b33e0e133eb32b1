/// Checks that hold for every pattern, given the sequence it should draw.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "mtf/schedule/pattern.hpp"

namespace mtf::test {

using Slots = std::vector<std::int32_t>;
using Counts = std::vector<std::uint64_t>;

template <Pattern P>
Slots filled(const P& pattern, std::uint64_t begin, std::size_t num_steps) {
  Slots out(num_steps, -1);
  pattern.fill(begin, out);
  return out;
}

template <Pattern P>
Counts counted(const P& pattern, std::uint64_t step) {
  Counts out(pattern.num_slots());
  pattern.counts(step, out);
  return out;
}

/// Expects every view of the pattern to agree with `expected`, its first steps; all of them if the pattern ends there.
template <Pattern P>
void expect_draws(const P& pattern, const Slots& expected) {
  ASSERT_EQ(filled(pattern, 0, expected.size()), expected);
  Counts counts(pattern.num_slots());
  for (std::uint64_t step = 0; step < expected.size(); ++step) {
    ASSERT_EQ(counted(pattern, step), counts) << "step " << step;
    const std::int32_t slot = expected[step];
    const std::uint64_t index = counts[static_cast<std::size_t>(slot)]++;
    ASSERT_EQ(pattern.at(step), (SlotDraw{slot, index})) << "step " << step;
    ASSERT_EQ(pattern.count(slot, step), index) << "step " << step;
    ASSERT_EQ(pattern.position(slot, index), step) << "slot " << slot << " index " << index;
  }
  ASSERT_EQ(counted(pattern, expected.size()), counts);
  for (std::size_t slot = 0; slot < counts.size(); ++slot) {
    ASSERT_EQ(pattern.count(static_cast<std::int32_t>(slot), expected.size()), counts[slot]);
    const std::uint64_t next = pattern.position(static_cast<std::int32_t>(slot), counts[slot]);
    ASSERT_GE(next, expected.size()) << "slot " << slot;
    if (pattern.length() == expected.size()) {
      ASSERT_EQ(next, kUnbounded) << "slot " << slot;
    }
  }
}

/// Expects fill() to give the same steps however it is cut.
template <Pattern P>
void expect_chunks_agree(const P& pattern, std::size_t num_steps) {
  const Slots whole = filled(pattern, 0, num_steps);
  std::size_t begin = 0;
  for (std::size_t size = 1; begin < num_steps; size = size * 2 + 1) {
    const std::size_t num = std::min(size, num_steps - begin);
    const Slots part = filled(pattern, begin, num);
    ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(begin)))
        << "steps from " << begin;
    begin += num;
  }
}

/// The steps of turns of `burst` steps each, cut short where a slot has no more left.
inline Slots stretched(const Slots& turns, std::uint64_t burst, std::vector<std::uint64_t> left) {
  Slots out;
  for (const std::int32_t slot : turns) {
    std::uint64_t& slot_left = left[static_cast<std::size_t>(slot)];
    for (std::uint64_t i = 0; i < burst && slot_left > 0; ++i) {
      slot_left -= slot_left == kUnbounded ? 0 : 1;
      out.push_back(slot);
    }
  }
  return out;
}

/// Turns that give `limits` draws at `burst` steps each.
inline std::vector<std::uint64_t> rounded_up(std::vector<std::uint64_t> limits, std::uint64_t burst) {
  for (std::uint64_t& limit : limits) {
    limit = limit == kUnbounded ? kUnbounded : (limit + burst - 1) / burst;
  }
  return limits;
}

/// Calls `visit` with every vector of `size` values out of `choices`.
template <class Visit>
void for_each_vector(std::size_t size, std::span<const std::uint64_t> choices, Visit visit) {
  std::vector<std::size_t> digits(size);
  std::vector<std::uint64_t> values(size);
  while (true) {
    for (std::size_t i = 0; i < size; ++i) {
      values[i] = choices[digits[i]];
    }
    visit(values);
    std::size_t i = 0;
    while (i < size && ++digits[i] == choices.size()) {
      digits[i++] = 0;
    }
    if (i == size) {
      return;
    }
  }
}

}  // namespace mtf::test
