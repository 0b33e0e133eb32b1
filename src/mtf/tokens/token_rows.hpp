/// What windows and packed rows have in common: the fields of a row, and how a row is traced to tokens and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "mtf/gather/row_source.hpp"

namespace mtf {

/// A label that no loss counts: what cross entropy ignores by default.
inline constexpr std::int64_t kIgnoredLabel = -100;

/// Tokens [begin, begin + count) of a corpus, inputs of a row one after the other.
struct TokenSpan {
  std::uint64_t begin = 0;
  std::uint64_t count = 0;

  friend bool operator==(const TokenSpan&, const TokenSpan&) = default;
};

/// The arrays of one row. Of the last two both are there or none is.
struct TokenRowPointers {
  std::int64_t* input_ids = nullptr;
  std::int64_t* labels = nullptr;
  std::int32_t* position_ids = nullptr;
  bool* loss_mask = nullptr;

  /// The row in slot `slot` of the buffers of `token_row_fields`.
  [[nodiscard]] static TokenRowPointers in_slot(std::span<std::byte* const> buffers, std::uint64_t slot,
                                                std::uint64_t length) noexcept;
};

/// input_ids and labels (int64), and with `boundaries` position_ids (int32, from 0 in each document) and loss_mask
/// (bool), each of `length` items.
[[nodiscard]] std::vector<RowField> token_row_fields(std::uint64_t length, bool boundaries);

/// Thread safety: as RowSource.
class TokenRowSource : public RowSource {
 public:
  /// The tokens of the row at a place of a pass, in the row's order. Throws: std::out_of_range for a place that there
  /// isn't. Complexity: O(spans), a microsecond; reads no tokens.
  [[nodiscard]] virtual std::vector<TokenSpan> trace(Key key, std::uint64_t pass, std::uint64_t place) const = 0;

  /// The places of a pass whose rows hold one of the tokens [begin, end), which are one document where rows are made of
  /// documents; sorted. Complexity: O(places), a microsecond each; reads no tokens.
  [[nodiscard]] virtual std::vector<std::uint64_t> find(Key key, std::uint64_t pass, std::uint64_t begin,
                                                        std::uint64_t end) const = 0;
};

}  // namespace mtf
