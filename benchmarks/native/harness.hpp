/// Times a piece of work and prints the best of several runs as one JSON line: {"name": ..., "ns": nanoseconds per
/// item}.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>

namespace mtf::bench {

/// Keeps `value` from being optimised away.
template <typename T>
inline void keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

/// Runs `work`, which does `num_items` items, for about `budget_s` seconds and prints the time of one item in the best
/// run: the rest of the machine can only add to it. Returns that time in nanoseconds.
template <typename Work>
double measure(const char* name, std::uint64_t num_items, Work work, double budget_s = 0.3) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::duration time) { return std::chrono::duration<double>(time).count(); };
  double best_s = std::numeric_limits<double>::infinity();
  const auto start = Clock::now();
  do {
    const auto begin = Clock::now();
    work();
    best_s = std::min(best_s, seconds(Clock::now() - begin));
  } while (seconds(Clock::now() - start) < budget_s);
  const double item_ns = best_s * 1e9 / static_cast<double>(num_items);
  std::printf("{\"name\": \"%s\", \"ns\": %.3f}\n", name, item_ns);
  std::fflush(stdout);
  return item_ns;
}

}  // namespace mtf::bench
