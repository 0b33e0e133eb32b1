/// Many files of tokens as one stream: token t of the corpus lies in the part whose range holds t.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mtf/tokens/map_cache.hpp"
#include "mtf/tokens/token_type.hpp"

namespace mtf {

/// A run of tokens: in a file from a byte on, or in memory that the caller keeps alive.
struct TokenPart {
  std::string path;                   ///< empty if the tokens are in memory
  std::uint64_t first_byte = 0;       ///< of the file, where the tokens begin
  const std::byte* memory = nullptr;  ///< the tokens, if `path` is empty
  std::uint64_t num_tokens = 0;
};

/// Thread safety: all methods.
class TokenCorpus {
 public:
  /// Parts lie one after the other in the order given. Throws: ConfigError if max_open_files is 0.
  TokenCorpus(std::vector<TokenPart> parts, TokenType type, std::size_t max_open_files);

  [[nodiscard]] TokenType type() const noexcept { return type_; }
  [[nodiscard]] std::uint64_t num_tokens() const noexcept { return begins_.back(); }
  [[nodiscard]] std::size_t num_parts() const noexcept { return parts_.size(); }
  /// Where each part begins, and the number of tokens at the end.
  [[nodiscard]] std::span<const std::uint64_t> part_begins() const noexcept { return begins_; }
  [[nodiscard]] const MapCache& maps() const noexcept { return maps_; }

  /// The part that holds a token. Requires token < num_tokens(). Complexity: O(log parts).
  [[nodiscard]] std::size_t part_of(std::uint64_t token) const noexcept {
    return static_cast<std::size_t>(std::ranges::upper_bound(begins_, token) - begins_.begin()) - 1;
  }

 private:
  friend class TokenReader;

  const TokenType type_;
  std::vector<TokenPart> parts_;
  std::vector<std::uint64_t> begins_;
  std::vector<std::size_t> file_of_part_;
  MapCache maps_;
};

/// Tokens that lie together in memory; alive as long as the reader has it or a later run of the same part.
struct TokenRun {
  const std::byte* tokens = nullptr;
  std::uint64_t count = 0;
  bool ends_part = false;
  std::shared_ptr<const MappedFile> map;
};

/// Reads a corpus on one thread; remembers the part read last, so that the next run of it costs nothing to find.
class TokenReader {
 public:
  explicit TokenReader(const TokenCorpus& corpus) noexcept : corpus_(corpus) {}

  /// The longest run from token `begin` on, of at most `max_count`. Requires begin < num_tokens() and max_count > 0.
  /// Throws: FileError if the file can't be mapped.
  [[nodiscard]] TokenRun run(std::uint64_t begin, std::uint64_t max_count);

  /// Calls `visit(run, done)` for the runs of [begin, begin + count), `done` tokens before each. Requires that the
  /// range lies within the corpus.
  template <typename Visit>
  void for_runs(std::uint64_t begin, std::uint64_t count, Visit visit) {
    for (std::uint64_t done = 0; done < count;) {
      const TokenRun part = run(begin + done, count - done);
      visit(part, done);
      done += part.count;
    }
  }

 private:
  const TokenCorpus& corpus_;
  std::optional<std::size_t> part_;
  std::shared_ptr<const MappedFile> map_;
};

}  // namespace mtf
