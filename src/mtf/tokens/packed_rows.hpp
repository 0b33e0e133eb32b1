/// Rows of whole documents, packed so that little room is left, and entered anywhere.
///
/// The table says which lengths share row i, the same in every pass. Which document of a length fills a place is a
/// permutation of each pass: piece n of length l is piece Permutation::compact(count_l, key_l)(n) of Pieces, key_l =
/// fold_in(fold_in(fold_in(key, pass), "length"), l). So each document is in each pass once, in other company, and
/// nothing is kept per row.
///
/// Inputs are the documents one after the other, the longest first, and zeros of `pad_token` at the end. A label is the
/// document's next token, also where that is in another piece; the last token of a document has none (kIgnoredLabel).
/// Positions count from 0 in each piece, and in the padding as if it were a document.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "mtf/sampling/pass_order.hpp"
#include "mtf/tokens/corpus.hpp"
#include "mtf/tokens/packing_table.hpp"
#include "mtf/tokens/pieces.hpp"
#include "mtf/tokens/token_rows.hpp"

namespace mtf {

struct PackingSpec {
  std::uint64_t length = 0;
  LongDocuments long_documents = LongDocuments::split;
  std::int64_t pad_token = 0;
  bool shuffle = true;
};

/// Thread safety: as RowSource.
class PackedRows : public TokenRowSource {
 public:
  /// Throws: ConfigError as Pieces, or if no document is left to pack.
  /// Complexity: O(documents), about 15 ns each, and the table.
  PackedRows(std::shared_ptr<const TokenCorpus> corpus, std::shared_ptr<const DocumentIndex> documents,
             PackingSpec spec);

  [[nodiscard]] const Pieces& pieces() const noexcept { return pieces_; }
  [[nodiscard]] const PackingTable& table() const noexcept { return table_; }

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

 private:
  /// A piece on its way into a row.
  struct Placed {
    std::uint32_t slot = 0;
    std::uint32_t length = 0;
    std::uint64_t number = 0;
    Pieces::Piece piece{};
  };

  [[nodiscard]] Permutation order_of_length(Key pass_key, std::uint64_t length) const {
    return Permutation::compact(pieces_.counts()[length], fold_in(pass_key, length));
  }
  /// Appends the pieces of a row, in its order; not looked up yet.
  void place_pieces(Key pass_key, std::uint64_t row, std::uint32_t slot, std::vector<Placed>& out) const;
  /// Looks up all pieces; each look-up is requested from memory ahead.
  void find_pieces(std::span<Placed> placed) const;
  /// Copies a piece to `at` in its row.
  template <typename Ahead>
  void copy_piece(TokenReader& reader, Ahead& ahead, const Placed& placed, const TokenRowPointers& row,
                  std::uint64_t at) const;
  void pad(const TokenRowPointers& row, std::uint64_t from) const;

  const std::shared_ptr<const TokenCorpus> corpus_;
  const Pieces pieces_;
  const PackingTable table_;
  const PackingSpec spec_;
  const std::vector<RowField> fields_;
  const PassOrder order_;
};

}  // namespace mtf
