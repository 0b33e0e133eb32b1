#include "mtf/tokens/token_copy.hpp"

#include <cstring>
#include <limits>

namespace mtf {

namespace {

// The loops are written once and compiled twice: for every processor, and for AVX2. The compiler vectorises both.

template <typename T>
[[gnu::always_inline]] inline void widen(const std::byte* from, std::size_t count, std::int64_t* to) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    T token;
    std::memcpy(&token, from + i * sizeof(T), sizeof(T));
    to[i] = static_cast<std::int64_t>(token);  // NOLINT(bugprone-signed-char-misuse): a number, not a character
  }
}

constexpr std::size_t kBlock = 64;

/// Whether one of the next `kBlock` tokens is `token`, without a branch for each.
template <typename T>
[[gnu::always_inline]] inline bool block_has(const std::byte* from, T token) noexcept {
  T hits = 0;
  for (std::size_t i = 0; i < kBlock; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    hits = static_cast<T>(hits | static_cast<T>(value == token));
  }
  return hits != 0;
}

template <typename T>
[[gnu::always_inline]] inline void find(const std::byte* from, std::size_t count, T token, std::uint64_t base,
                                        std::vector<std::uint64_t>& found) {
  const auto scan = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      T value;
      std::memcpy(&value, from + i * sizeof(T), sizeof(T));
      if (value == token) {
        found.push_back(base + i);
      }
    }
  };
  std::size_t begin = 0;
  for (; begin + kBlock <= count; begin += kBlock) {
    if (block_has(from + begin * sizeof(T), token)) {
      scan(begin, begin + kBlock);
    }
  }
  scan(begin, count);
}

[[gnu::always_inline]] inline void count_from_zero(std::int32_t* out, std::size_t count) noexcept {
  const auto end = static_cast<std::int32_t>(count);
  for (std::int32_t i = 0; i < end; ++i) {
    out[i] = i;
  }
}

#if MTF_HAS_AVX2_CODE
template <typename T>
__attribute__((target("avx2"))) void widen_avx2(const std::byte* from, std::size_t count, std::int64_t* to) noexcept {
  widen<T>(from, count, to);
}

template <typename T>
__attribute__((target("avx2"))) void find_avx2(const std::byte* from, std::size_t count, T token, std::uint64_t base,
                                               std::vector<std::uint64_t>& found) {
  find<T>(from, count, token, base, found);
}

__attribute__((target("avx2"))) void count_avx2(std::int32_t* out, std::size_t count) noexcept {
  count_from_zero(out, count);
}
#endif

}  // namespace

void widen_tokens(TokenType type, const std::byte* from, std::size_t count, std::int64_t* to, Simd simd) noexcept {
  with_token_type(type, [&]<typename T>(T) {
#if MTF_HAS_AVX2_CODE
    if (simd == Simd::avx2) {
      widen_avx2<T>(from, count, to);
      return;
    }
#else
    static_cast<void>(simd);
#endif
    widen<T>(from, count, to);
  });
}

void find_token(TokenType type, const std::byte* from, std::size_t count, std::int64_t token, std::uint64_t base,
                std::vector<std::uint64_t>& found, Simd simd) {
  with_token_type(type, [&]<typename T>(T) {
    const auto wanted = static_cast<T>(token);
    if (static_cast<std::int64_t>(wanted) != token) {
      return;  // a token that the type can't hold is nowhere
    }
#if MTF_HAS_AVX2_CODE
    if (simd == Simd::avx2) {
      find_avx2<T>(from, count, wanted, base, found);
      return;
    }
#else
    static_cast<void>(simd);
#endif
    find<T>(from, count, wanted, base, found);
  });
}

void count_up(std::int32_t* out, std::size_t count, Simd simd) noexcept {
#if MTF_HAS_AVX2_CODE
  if (simd == Simd::avx2) {
    count_avx2(out, count);
    return;
  }
#else
  static_cast<void>(simd);
#endif
  count_from_zero(out, count);
}

}  // namespace mtf
