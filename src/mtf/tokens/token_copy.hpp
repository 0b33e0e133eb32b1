/// Tokens copied into int64, and end tokens found on the way: the inner loops of rows of tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mtf/random/cpu.hpp"
#include "mtf/tokens/token_type.hpp"

namespace mtf {

/// Writes `count` tokens at `from` (any alignment) to `to` as int64. Complexity: O(count), about 0.1 ns a token in
/// cache.
void widen_tokens(TokenType type, const std::byte* from, std::size_t count, std::int64_t* to,
                  Simd simd = best_simd()) noexcept;

/// Appends i + `base` for each i < `count` with token i equal to `token`, in order. Complexity: O(count), about 0.05 ns
/// for a token of 2 bytes in cache, and a few ns for each one found.
void find_token(TokenType type, const std::byte* from, std::size_t count, std::int64_t token, std::uint64_t base,
                std::vector<std::uint64_t>& found, Simd simd = best_simd());

/// Writes 0, 1, 2 ... to `out`.
void count_up(std::int32_t* out, std::size_t count, Simd simd = best_simd()) noexcept;

}  // namespace mtf
