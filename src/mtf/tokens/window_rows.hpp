/// Windows of a corpus: rows cut from the stream of its tokens, whatever documents they hold.
///
/// Row i of pass p has the inputs [o + i L, o + i L + L) and as labels the tokens one further on, L = length. The
/// offset o is 0, or drawn for each pass from [0, slack], slack = num_tokens - 1 - num_rows L: so windows and the
/// beginnings of documents move against each other from pass to pass, and no token is left out in every pass.
///
/// With boundaries a row is cut into the documents it holds: positions count from 0 in each (the first may have begun
/// before the row), and a label that belongs to another document than its input is kIgnoredLabel.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "mtf/sampling/pass_order.hpp"
#include "mtf/tokens/corpus.hpp"
#include "mtf/tokens/documents.hpp"
#include "mtf/tokens/token_rows.hpp"

namespace mtf {

struct WindowSpec {
  std::uint64_t length = 0;
  bool moving = true;
  bool boundaries = true;
  bool shuffle = true;
  /// Where documents end if there is no index: after this token, and where a part of the corpus ends.
  std::optional<std::int64_t> end_token;
};

/// Thread safety: as RowSource.
class WindowRows : public TokenRowSource {
 public:
  /// `documents` may be null. Throws: ConfigError for a length that is 0 or doesn't fit in int32, a corpus with fewer
  /// tokens than one row needs, or boundaries without an index or an end token.
  WindowRows(std::shared_ptr<const TokenCorpus> corpus, std::shared_ptr<const DocumentIndex> documents,
             WindowSpec spec);

  [[nodiscard]] std::uint64_t num_rows() const noexcept override { return order_.num_rows(); }
  [[nodiscard]] std::span<const RowField> fields() const noexcept override { return fields_; }
  void find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                 std::span<std::uint64_t> rows) const override;
  [[nodiscard]] std::uint64_t place_of(Key key, std::uint64_t pass, std::uint64_t row) const override {
    return order_.place_of(key, pass, row);
  }
  /// Throws: FileError if a file can't be mapped any more.
  void write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                  std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const override;
  [[nodiscard]] std::vector<TokenSpan> trace(Key key, std::uint64_t pass, std::uint64_t place) const override;
  [[nodiscard]] std::vector<std::uint64_t> find(Key key, std::uint64_t pass, std::uint64_t begin,
                                                std::uint64_t end) const override;

  /// The first token of row 0 in a pass.
  [[nodiscard]] std::uint64_t offset(Key key, std::uint64_t pass) const noexcept;

 private:
  /// Writes inputs and labels of the row that begins at `begin`; appends where documents begin in (0, length] to
  /// `bounds` if there is an end token to look for.
  template <typename Ahead>
  void copy_tokens(TokenReader& reader, Ahead& ahead, std::uint64_t begin, const TokenRowPointers& row,
                   std::vector<std::uint64_t>* bounds) const;

  const std::shared_ptr<const TokenCorpus> corpus_;
  const std::shared_ptr<const DocumentIndex> documents_;
  const WindowSpec spec_;
  const std::vector<RowField> fields_;
  const PassOrder order_;
  const std::uint64_t slack_;
};

}  // namespace mtf
