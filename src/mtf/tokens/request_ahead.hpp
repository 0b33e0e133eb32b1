/// Tokens requested from memory in step with the copy of those before them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "mtf/tokens/corpus.hpp"
#include "mtf/tokens/token_rows.hpp"

namespace mtf {

/// Requests what `next()` names, one std::optional<TokenSpan> after the other until there is none. A core follows only
/// so many requests at once: all of a row's in one go would wait for each other, and the copy for them.
template <typename Next>
class RequestAhead {
 public:
  RequestAhead(const TokenCorpus& corpus, Next next)
      : reader_(corpus), item_bytes_(item_bytes(corpus.type())), next_(std::move(next)) {}

  /// Requests the next `num_tokens` tokens' lines of the cache.
  void request(std::size_t num_tokens) {
    bytes_due_ += num_tokens * item_bytes_;
    while (bytes_due_ >= kLineBytes && (left_ > 0 || find_run())) {
      __builtin_prefetch(at_);
      const std::size_t step = std::min(kLineBytes, left_);
      at_ += step;
      left_ -= step;
      bytes_due_ -= step;
    }
  }

 private:
  static constexpr std::size_t kLineBytes = 64;

  bool find_run() {
    const std::optional<TokenSpan> span = next_();
    if (!span) {
      bytes_due_ = 0;
      return false;
    }
    const TokenRun run = reader_.run(span->begin, span->count);
    at_ = run.tokens;
    left_ = run.count * item_bytes_;
    return true;
  }

  TokenReader reader_;  // keeps the map alive
  std::size_t item_bytes_;
  Next next_;
  const std::byte* at_ = nullptr;
  std::size_t left_ = 0;
  std::size_t bytes_due_ = 0;
};

}  // namespace mtf
