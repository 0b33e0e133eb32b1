/// Keys name independent streams of random numbers. They are derived by folding data in, never by adding seeds.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "mtf/random/philox.hpp"

namespace mtf {

/// Names one stream of random numbers. A seed is the key it spells.
struct Key {
  std::uint64_t value = 0;

  friend constexpr auto operator<=>(const Key&, const Key&) = default;

  [[nodiscard]] constexpr PhiloxKey words() const noexcept {
    return {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)};
  }
};

/// The third counter word separates what a key is used for, so that streams and derived keys never share bits.
enum class KeyUse : std::uint32_t { stream = 0, fold_integer = 1, fold_name = 2 };

/// A key that depends on every bit of `key` and `data`. Thread safety: pure.
[[nodiscard]] constexpr Key fold_in(Key key, std::uint64_t data, KeyUse use = KeyUse::fold_integer) noexcept {
  const PhiloxCounter out = philox4x32(
      {static_cast<std::uint32_t>(data), static_cast<std::uint32_t>(data >> 32), static_cast<std::uint32_t>(use), 0},
      key.words());
  return Key{out[0] | (std::uint64_t{out[1]} << 32)};
}

/// As above for a name: its bytes are hashed by 64-bit FNV-1a first. Complexity: O(name.size()).
[[nodiscard]] constexpr Key fold_in(Key key, std::string_view name) noexcept {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const char byte : name) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3;
  }
  return fold_in(key, hash, KeyUse::fold_name);
}

/// The 64-bit words of a key's stream, in order, from any position. A value type: copy it to fork the position.
class Stream {
 public:
  explicit constexpr Stream(Key key, std::uint64_t position = 0) noexcept : key_(key), position_(position) {}

  /// The next 64 bits. Word t of the stream is half `t mod 2` of the block at counter t / 2.
  [[nodiscard]] constexpr std::uint64_t next() noexcept {
    const std::array<std::uint64_t, 2> words = block(key_, position_ / 2);
    return words[position_++ % 2];
  }

  /// Words 2 `number` and 2 `number` + 1 of the key's stream.
  [[nodiscard]] static constexpr std::array<std::uint64_t, 2> block(Key key, std::uint64_t number) noexcept {
    const PhiloxCounter out = philox4x32({static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32),
                                          static_cast<std::uint32_t>(KeyUse::stream), 0},
                                         key.words());
    return {out[0] | (std::uint64_t{out[1]} << 32), out[2] | (std::uint64_t{out[3]} << 32)};
  }

  /// An unbiased draw from [0, bound), bound > 0. Complexity: O(1) expected.
  /// Source: D. Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019.
  [[nodiscard]] constexpr std::uint64_t bounded(std::uint64_t bound) noexcept {
    unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
      const std::uint64_t threshold = (0 - bound) % bound;
      // guard: rejection
      while (static_cast<std::uint64_t>(product) < threshold) {
        product = static_cast<unsigned __int128>(next()) * bound;
      }
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

  [[nodiscard]] constexpr std::uint64_t position() const noexcept { return position_; }

 private:
  Key key_;
  std::uint64_t position_;
};

}  // namespace mtf
