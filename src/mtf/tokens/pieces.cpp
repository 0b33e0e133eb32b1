#include "mtf/tokens/pieces.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "mtf/error.hpp"

namespace mtf {

Pieces::Pieces(std::shared_ptr<const DocumentIndex> documents, std::uint64_t length, LongDocuments long_documents)
    : documents_(std::move(documents)), length_(length), long_documents_(long_documents) {
  if (length == 0 || length > std::uint64_t{std::numeric_limits<std::int32_t>::max()}) {
    throw ConfigError("length: must be in [1, 2^31), but is " + std::to_string(length));
  }
  const std::uint64_t num = documents_->num_documents();
  counts_.resize(length + 1);
  std::uint64_t num_full = 0;
  for (std::uint64_t d = 0; d < num; ++d) {
    const std::uint64_t tokens = documents_->length(d);
    if (tokens > length) {
      ++num_long_;
      if (long_documents == LongDocuments::split) {
        split_.push_back(static_cast<std::uint32_t>(d));
        full_before_.push_back(num_full);
        num_full += (tokens - 1) / length;
      } else {
        const bool is_dropped = long_documents == LongDocuments::drop;
        num_dropped_documents_ += is_dropped ? 1 : 0;
        num_dropped_tokens_ += is_dropped ? tokens : tokens - length;
        // The last token that is kept of a truncated document has a label, because the document has a next token.
        num_supervised_ += is_dropped ? 0 : 1;
      }
    }
    ++counts_[last_length(tokens)];
  }
  counts_[0] = 0;
  first_.resize(length + 2);
  for (std::uint64_t l = 0; l <= length; ++l) {
    first_[l + 1] = first_[l] + counts_[l];
    num_tokens_ += counts_[l] * l;
  }
  by_length_.resize(first_.back());
  std::vector<std::uint64_t> next(first_.begin(), first_.end() - 1);
  for (std::uint64_t d = 0; d < num; ++d) {
    const std::uint64_t last = last_length(documents_->length(d));
    if (last != 0) {
      by_length_[next[last]++] = static_cast<std::uint32_t>(d);
    }
  }
  counts_[length] += num_full;
  num_tokens_ += num_full * length;
  num_supervised_ += num_tokens_ - by_length_.size();
}

std::uint64_t Pieces::last_length(std::uint64_t tokens) const noexcept {
  if (tokens <= length_) {
    return tokens;
  }
  switch (long_documents_) {
    case LongDocuments::split:
      return (tokens - 1) % length_ + 1;
    case LongDocuments::truncate:
      return length_;
    default:
      return 0;
  }
}

Pieces::Piece Pieces::piece(std::uint64_t length, std::uint64_t number) const noexcept {
  Piece found{.span = {.begin = 0, .count = length}};
  if (const std::uint32_t* const document = document_at(length, number)) {
    found.document = *document;
    const bool from_front = long_documents_ == LongDocuments::truncate;
    found.span.begin = from_front ? documents_->begin(*document) : documents_->end(*document) - length;
  } else {
    const std::uint64_t full = number - (first_[length + 1] - first_[length]);
    const auto split =
        static_cast<std::size_t>(std::ranges::upper_bound(full_before_, full) - full_before_.begin()) - 1;
    found.document = split_[split];
    found.span.begin = documents_->begin(split_[split]) + (full - full_before_[split]) * length;
  }
  found.ends_document = found.span.begin + length == documents_->end(found.document);
  return found;
}

std::vector<Pieces::Number> Pieces::of_document(std::uint64_t document) const {
  std::vector<Number> pieces;
  const std::uint64_t tokens = documents_->length(document);
  const std::uint64_t last = last_length(tokens);
  if (last == 0) {
    return pieces;
  }
  if (tokens > length_ && long_documents_ == LongDocuments::split) {
    const auto split = static_cast<std::size_t>(std::ranges::lower_bound(split_, document) - split_.begin());
    const std::uint64_t begin = first_[length_ + 1] - first_[length_] + full_before_[split];
    for (std::uint64_t k = 0; k < (tokens - 1) / length_; ++k) {
      pieces.push_back({length_, begin + k});
    }
  }
  const auto bucket = std::span(by_length_).subspan(first_[last], first_[last + 1] - first_[last]);
  pieces.push_back({last, static_cast<std::uint64_t>(std::ranges::lower_bound(bucket, document) - bucket.begin())});
  return pieces;
}

}  // namespace mtf
