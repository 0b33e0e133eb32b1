#include "mtf/tokens/window_rows.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/tokens/request_ahead.hpp"
#include "mtf/tokens/token_copy.hpp"

namespace mtf {

namespace {

std::uint64_t count_rows(std::uint64_t num_tokens, const WindowSpec& spec) {
  if (spec.length == 0 || spec.length > std::uint64_t{std::numeric_limits<std::int32_t>::max()}) {
    throw ConfigError("length: must be in [1, 2^31), but is " + std::to_string(spec.length));
  }
  // A row needs the label of its last token, too. A moving window gives up one row, so that it has room to move.
  const std::uint64_t needed = spec.moving ? 2 * spec.length : spec.length + 1;
  if (num_tokens < needed) {
    throw ConfigError("length: windows of " + std::to_string(spec.length) + " tokens" +
                      (spec.moving ? " that move" : "") + " need a corpus of at least " + std::to_string(needed) +
                      " tokens, but it has " + std::to_string(num_tokens) + "; give a smaller length" +
                      (spec.moving ? " or moving=False" : ""));
  }
  return spec.moving ? (num_tokens - spec.length) / spec.length : (num_tokens - 1) / spec.length;
}

/// Cuts a row at `bounds`, rising, in (0, length]: a document begins at each.
void cut_row(const TokenRowPointers& row, std::uint64_t length, std::span<const std::uint64_t> bounds) {
  std::memset(row.loss_mask, 1, length);
  std::uint64_t begin = 0;
  for (const std::uint64_t bound : bounds) {
    row.loss_mask[bound - 1] = false;
    row.labels[bound - 1] = kIgnoredLabel;
    count_up(row.position_ids + begin, bound - begin);
    begin = bound;
  }
  count_up(row.position_ids + begin, length - begin);
}

// Tokens copied before the next lines are requested: enough that the copy runs at its full speed.
constexpr std::uint64_t kStep = 128;

}  // namespace

WindowRows::WindowRows(std::shared_ptr<const TokenCorpus> corpus, std::shared_ptr<const DocumentIndex> documents,
                       WindowSpec spec)
    : corpus_(std::move(corpus)),
      documents_(std::move(documents)),
      spec_(spec),
      fields_(token_row_fields(spec.length, spec.boundaries)),
      order_(count_rows(corpus_->num_tokens(), spec), spec.shuffle),
      slack_(corpus_->num_tokens() - 1 - order_.num_rows() * spec.length) {
  if (spec_.boundaries && !documents_ && !spec_.end_token) {
    throw ConfigError(
        "boundaries: the corpus doesn't say where documents end; give it eos= or documents=, or boundaries=False");
  }
}

std::uint64_t WindowRows::offset(Key key, std::uint64_t pass) const noexcept {
  return spec_.moving ? Stream(fold_in(fold_in(key, pass), "offset")).bounded(slack_ + 1) : 0;
}

void WindowRows::find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                           std::span<std::uint64_t> rows) const {
  order_.find(key, pass, places, rows);
}

template <typename Ahead>
void WindowRows::copy_tokens(TokenReader& reader, Ahead& ahead, std::uint64_t begin, const TokenRowPointers& row,
                             std::vector<std::uint64_t>* bounds) const {
  const TokenType type = corpus_->type();
  const std::size_t bytes = item_bytes(type);
  reader.for_runs(begin, spec_.length + 1, [&](const TokenRun& run, std::uint64_t done) {
    if (done > 0) {  // the label of the run before
      widen_tokens(type, run.tokens, 1, row.labels + done - 1);
    }
    for (std::uint64_t k = 0; k < run.count; k += kStep) {
      const std::uint64_t num = std::min(kStep, run.count - k);
      const std::byte* const from = run.tokens + k * bytes;
      ahead.request(num);
      widen_tokens(type, from, std::min(num, spec_.length - done - k), row.input_ids + done + k);
      widen_tokens(type, from + bytes, std::min(num, run.count - k - 1), row.labels + done + k);
    }
    if (bounds != nullptr && spec_.end_token) {  // the run is in the cache now
      find_token(type, run.tokens, std::min(run.count, spec_.length - done), *spec_.end_token, done + 1, *bounds);
    }
    const std::uint64_t end = done + run.count;
    if (bounds != nullptr && run.ends_part && end <= spec_.length && (bounds->empty() || bounds->back() != end)) {
      bounds->push_back(end);
    }
  });
}

void WindowRows::write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                            std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const {
  std::vector<std::uint64_t> bounds;
  const std::uint64_t first = offset(key, pass), length = spec_.length;
  const auto begin_of = [&](std::size_t k) { return first + rows[k] * length; };
  const bool scan = spec_.boundaries && !documents_;
  TokenReader reader(*corpus_);
  RequestAhead ahead(*corpus_, [&, requested = std::size_t{0}]() mutable -> std::optional<TokenSpan> {
    if (++requested >= rows.size()) {
      return std::nullopt;
    }
    return TokenSpan{.begin = begin_of(requested), .count = length + 1};
  });
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const TokenRowPointers row = TokenRowPointers::in_slot(buffers, slots[k], length);
    const std::uint64_t begin = begin_of(k);
    bounds.clear();
    copy_tokens(reader, ahead, begin, row, scan ? &bounds : nullptr);
    if (!spec_.boundaries) {
      continue;
    }
    if (documents_) {
      for (std::uint64_t d = documents_->first_after(begin);
           d < documents_->num_documents() && documents_->begin(d) <= begin + length; ++d) {
        const std::uint64_t bound = documents_->begin(d) - begin;
        if (bounds.empty() || bounds.back() != bound) {
          bounds.push_back(bound);  // empty documents begin together
        }
      }
    }
    cut_row(row, length, bounds);
  }
}

std::vector<TokenSpan> WindowRows::trace(Key key, std::uint64_t pass, std::uint64_t place) const {
  std::uint64_t row = 0;
  order_.find(key, pass, {&place, 1}, {&row, 1});
  return {{.begin = offset(key, pass) + row * spec_.length, .count = spec_.length}};
}

std::vector<std::uint64_t> WindowRows::find(Key key, std::uint64_t pass, std::uint64_t begin, std::uint64_t end) const {
  const std::uint64_t first = offset(key, pass), length = spec_.length;
  std::vector<std::uint64_t> places;
  if (end <= begin || end <= first) {
    return places;
  }
  const std::uint64_t first_row = begin < first ? 0 : (begin - first) / length;
  const std::uint64_t end_row = std::min(num_rows(), (end - first - 1) / length + 1);
  for (std::uint64_t row = first_row; row < end_row; ++row) {
    places.push_back(order_.place_of(key, pass, row));
  }
  std::ranges::sort(places);
  return places;
}

}  // namespace mtf
