/// Tells an object whether it still lives in the process that made it.
///
/// A forked child has none of its parent's threads and may have inherited locks that they held. An object with threads
/// or locks keeps a guard and, in a child, touches neither.
#pragma once

#include <cstdint>

namespace mtf {

/// Complexity: O(1), one atomic load. Thread safety: all methods.
class ForkGuard {
 public:
  ForkGuard() noexcept : generation_(current()) {}

  /// True in a child process that was forked after the guard was made.
  [[nodiscard]] bool inherited() const noexcept { return generation_ != current(); }

 private:
  /// How many forks lie between the first process and this one.
  [[nodiscard]] static std::uint64_t current() noexcept;

  std::uint64_t generation_;
};

}  // namespace mtf
