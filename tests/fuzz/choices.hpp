/// What a fuzzer's bytes decide, and what it does when something doesn't hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <span>

namespace fuzz {

/// Small numbers from the fuzzer's bytes; zeros when they are used up.
class Choices {
 public:
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  /// A number in [0, n), 0 < n <= 2^32.
  std::uint64_t below(std::uint64_t n) {
    std::uint64_t value = 0;
    for (std::uint64_t reach = 1; reach < n; reach <<= 8) {
      value = (value << 8) | (used_ < bytes_.size() ? bytes_[used_] : 0);
      ++used_;
    }
    return value % n;
  }
  bool one_in(std::uint64_t n) { return below(n) == n - 1; }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(values.size())];
  }
  [[nodiscard]] bool is_empty() const noexcept { return used_ >= bytes_.size(); }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t used_ = 0;
};

/// Ends the program when something doesn't hold; clang 14 has no std::source_location.
inline void require(bool holds, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (holds) {
    return;
  }
  std::fprintf(stderr, "%s:%d: what is required here doesn't hold\n", file, line);
  std::abort();
}

}  // namespace fuzz
