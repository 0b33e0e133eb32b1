/// Bytes of a state: magic, kind, version, payload, and the CRC-32C of all that; the same on every platform.
///
///     offset  size  what
///     0       4     "MTFS"
///     4       4     kind, four letters (e.g. "SCHD")
///     8       4     version of the kind's fields, little-endian
///     12      8     size of the payload in bytes, little-endian
///     20      n     payload: one Value, every field with its name
///     20+n    4     CRC-32C of bytes [0, 20+n), little-endian
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "mtf/state/value.hpp"

namespace mtf {

/// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of `bytes`. Complexity: O(bytes), about 1 ns per byte.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept;

struct Decoded {
  std::uint32_t version = 0;
  Value value;
};

/// `value` as bytes. `kind` has four letters.
[[nodiscard]] std::string encode(std::string_view kind, std::uint32_t version, const Value& value);

/// The inverse of `encode`. Every count is checked against the bytes that are left before anything is allocated.
/// Throws: StateMismatch, saying what is wrong and where: other magic or kind, a version above `newest`, truncation,
/// a wrong checksum, bytes left over, a name given twice, nesting deeper than 32.
[[nodiscard]] Decoded decode(std::string_view kind, std::uint32_t newest, std::span<const std::byte> bytes);

}  // namespace mtf
