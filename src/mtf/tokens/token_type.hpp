/// The integer types that token files are stored in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mtf {

enum class TokenType : std::uint8_t { int8, uint8, int16, uint16, int32, uint32, int64, uint64 };

[[nodiscard]] constexpr std::size_t item_bytes(TokenType type) noexcept {
  return std::size_t{1} << (static_cast<std::size_t>(type) / 2);
}

/// Calls `visit` with a zero of the C++ type that `type` stands for.
template <typename Visit>
constexpr decltype(auto) with_token_type(TokenType type, Visit visit) {
  switch (type) {
    case TokenType::int8:
      return visit(std::int8_t{});
    case TokenType::uint8:
      return visit(std::uint8_t{});
    case TokenType::int16:
      return visit(std::int16_t{});
    case TokenType::uint16:
      return visit(std::uint16_t{});
    case TokenType::int32:
      return visit(std::int32_t{});
    case TokenType::uint32:
      return visit(std::uint32_t{});
    case TokenType::int64:
      return visit(std::int64_t{});
    default:
      return visit(std::uint64_t{});
  }
}

}  // namespace mtf
