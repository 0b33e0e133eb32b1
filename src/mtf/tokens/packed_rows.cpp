#include "mtf/tokens/packed_rows.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/tokens/request_ahead.hpp"
#include "mtf/tokens/token_copy.hpp"

namespace mtf {

namespace {

constexpr std::size_t kPiecesAhead = 16;      // how many look-ups are on their way at once
constexpr std::uint64_t kTokensAhead = 4096;  // of the pieces after the one that is copied
// Tokens copied before the next lines are requested: enough that the copy runs at its full speed.
constexpr std::uint64_t kStep = 128;

Key key_of_lengths(Key key, std::uint64_t pass) noexcept { return fold_in(fold_in(key, pass), "length"); }

std::uint64_t checked_rows(const PackingTable& table) {
  if (table.num_rows() == 0) {
    throw ConfigError(
        "documents: must be at least one that isn't empty and fits, but there is none to pack; "
        "give a greater length, or long='split'");
  }
  return table.num_rows();
}

}  // namespace

PackedRows::PackedRows(std::shared_ptr<const TokenCorpus> corpus, std::shared_ptr<const DocumentIndex> documents,
                       PackingSpec spec)
    : corpus_(std::move(corpus)),
      pieces_(std::move(documents), spec.length, spec.long_documents),
      table_(pieces_.counts()),
      spec_(spec),
      fields_(token_row_fields(spec.length, true)),
      order_(checked_rows(table_), spec.shuffle) {}

void PackedRows::find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                           std::span<std::uint64_t> rows) const {
  order_.find(key, pass, places, rows);
}

void PackedRows::place_pieces(Key pass_key, std::uint64_t row, std::uint32_t slot, std::vector<Placed>& out) const {
  const PackingTable::Row found = table_.row(row);
  for (const PackingTable::Entry& entry : found.entries) {
    const Permutation order = order_of_length(pass_key, entry.length);
    for (std::uint32_t k = 0; k < entry.each; ++k) {
      out.push_back({.slot = slot, .length = entry.length, .number = order(entry.first + found.nth * entry.each + k)});
    }
  }
}

void PackedRows::find_pieces(std::span<Placed> placed) const {
  const std::int64_t* const offsets = pieces_.documents().offsets().data();
  for (const Placed& piece : placed) {
    __builtin_prefetch(pieces_.document_at(piece.length, piece.number));
  }
  for (std::size_t k = 0; k < placed.size() + kPiecesAhead; ++k) {
    if (k < placed.size()) {
      const std::uint32_t* const document = pieces_.document_at(placed[k].length, placed[k].number);
      if (document != nullptr) {
        __builtin_prefetch(offsets + *document);
      }
    }
    if (k >= kPiecesAhead) {
      Placed& piece = placed[k - kPiecesAhead];
      piece.piece = pieces_.piece(piece.length, piece.number);
    }
  }
}

template <typename Ahead>
void PackedRows::copy_piece(TokenReader& reader, Ahead& ahead, const Placed& placed, const TokenRowPointers& row,
                            std::uint64_t at) const {
  const bool is_last = placed.piece.ends_document;
  const TokenType type = corpus_->type();
  const std::size_t bytes = item_bytes(type);
  const std::uint64_t num_tokens = placed.length + (is_last ? 0 : 1);
  reader.for_runs(placed.piece.span.begin, num_tokens, [&](const TokenRun& run, std::uint64_t done) {
    if (done > 0) {  // the label of the run before
      widen_tokens(type, run.tokens, 1, row.labels + at + done - 1);
    }
    for (std::uint64_t k = 0; k < run.count; k += kStep) {
      const std::uint64_t num = std::min(kStep, run.count - k);
      const std::byte* const from = run.tokens + k * bytes;
      ahead.request(num);
      widen_tokens(type, from, std::min(num, placed.length - done - k), row.input_ids + at + done + k);
      widen_tokens(type, from + bytes, std::min(num, run.count - k - 1), row.labels + at + done + k);
    }
  });
  std::memset(row.loss_mask + at, 1, placed.length);
  if (is_last) {
    row.labels[at + placed.length - 1] = kIgnoredLabel;
    row.loss_mask[at + placed.length - 1] = false;
  }
  count_up(row.position_ids + at, placed.length);
}

void PackedRows::pad(const TokenRowPointers& row, std::uint64_t from) const {
  const std::uint64_t count = spec_.length - from;
  std::fill_n(row.input_ids + from, count, spec_.pad_token);
  std::fill_n(row.labels + from, count, kIgnoredLabel);
  std::memset(row.loss_mask + from, 0, count);
  count_up(row.position_ids + from, count);
}

void PackedRows::write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                            std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const {
  const Key pass_key = key_of_lengths(key, pass);
  std::vector<Placed> placed;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    place_pieces(pass_key, rows[k], slots[k], placed);
  }
  find_pieces(placed);
  TokenReader reader(*corpus_);
  RequestAhead ahead(*corpus_, [&, requested = std::size_t{0}]() mutable -> std::optional<TokenSpan> {
    if (requested == placed.size()) {
      return std::nullopt;
    }
    const Placed& next = placed[requested++];
    return TokenSpan{.begin = next.piece.span.begin, .count = next.length};
  });
  ahead.request(kTokensAhead);
  std::uint64_t at = 0;
  for (std::size_t k = 0; k < placed.size(); ++k) {
    const TokenRowPointers row = TokenRowPointers::in_slot(buffers, placed[k].slot, spec_.length);
    copy_piece(reader, ahead, placed[k], row, at);
    at += placed[k].length;
    if (k + 1 == placed.size() || placed[k + 1].slot != placed[k].slot) {
      pad(row, at);
      at = 0;
    }
  }
}

std::vector<TokenSpan> PackedRows::trace(Key key, std::uint64_t pass, std::uint64_t place) const {
  std::uint64_t row = 0;
  order_.find(key, pass, {&place, 1}, {&row, 1});
  std::vector<Placed> placed;
  place_pieces(key_of_lengths(key, pass), row, 0, placed);
  std::vector<TokenSpan> spans;
  for (const Placed& piece : placed) {
    spans.push_back(pieces_.piece(piece.length, piece.number).span);
  }
  return spans;
}

std::vector<std::uint64_t> PackedRows::find(Key key, std::uint64_t pass, std::uint64_t begin, std::uint64_t end) const {
  std::vector<std::uint64_t> places;
  if (end <= begin) {
    return places;
  }
  const Key pass_key = key_of_lengths(key, pass);
  for (const Pieces::Number& number : pieces_.of_document(pieces_.documents().document_of(begin))) {
    const TokenSpan span = pieces_.piece(number.length, number.piece).span;
    if (span.begin >= end || span.begin + span.count <= begin) {
      continue;
    }
    const std::uint64_t ordinal = order_of_length(pass_key, number.length).inverse(number.piece);
    places.push_back(order_.place_of(key, pass, table_.row_of(static_cast<std::uint32_t>(number.length), ordinal)));
  }
  std::ranges::sort(places);
  places.erase(std::unique(places.begin(), places.end()), places.end());  // clang 14 has no ranges::unique
  return places;
}

}  // namespace mtf
