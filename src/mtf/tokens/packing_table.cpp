#include "mtf/tokens/packing_table.hpp"

#include <algorithm>
#include <bit>

namespace mtf {

namespace {

/// The lengths of which pieces are left, as bits.
class LengthSet {
 public:
  explicit LengthSet(std::span<const std::uint64_t> counts) : words_(counts.size() / 64 + 1) {
    for (std::size_t length = 1; length < counts.size(); ++length) {
      if (counts[length] != 0) {
        words_[length / 64] |= std::uint64_t{1} << (length % 64);
      }
    }
  }

  void remove(std::size_t length) noexcept { words_[length / 64] &= ~(std::uint64_t{1} << (length % 64)); }

  /// The greatest length that is there and at most `most`; 0 if there is none.
  [[nodiscard]] std::size_t greatest(std::size_t most) const noexcept {
    std::size_t word = most / 64;
    std::uint64_t bits = words_[word] & (~std::uint64_t{0} >> (63 - most % 64));
    while (bits == 0 && word > 0) {
      bits = words_[--word];
    }
    return bits == 0 ? 0 : word * 64 + 63 - static_cast<std::size_t>(std::countl_zero(bits));
  }

 private:
  std::vector<std::uint64_t> words_;
};

}  // namespace

PackingTable::PackingTable(std::span<const std::uint64_t> counts) {
  const std::size_t row_length = counts.size() - 1;
  std::vector<std::uint64_t> left(counts.begin(), counts.end()), used(counts.size());
  LengthSet lengths(counts);
  for (std::size_t longest = lengths.greatest(row_length); longest != 0; longest = lengths.greatest(longest)) {
    // Lengths fall within a pattern, so a length's entry is complete when the next one begins.
    const std::size_t begin = entries_.size();
    std::uint64_t times = ~std::uint64_t{0};
    for (std::size_t room = row_length, length = longest; length != 0;) {
      const std::uint64_t each = std::min<std::uint64_t>(room / length, left[length]);
      entries_.push_back({.length = static_cast<std::uint32_t>(length),
                          .each = static_cast<std::uint32_t>(each),
                          .first = used[length]});
      times = std::min(times, left[length] / each);
      room -= each * length;
      length = room == 0 ? 0 : lengths.greatest(std::min(room, length - 1));
    }
    for (std::size_t e = begin; e < entries_.size(); ++e) {
      const std::size_t length = entries_[e].length;
      used[length] += entries_[e].each * times;
      left[length] -= entries_[e].each * times;
      if (left[length] == 0) {
        lengths.remove(length);
      }
    }
    entry_begins_.push_back(static_cast<std::uint32_t>(entries_.size()));
    row_begins_.push_back(row_begins_.back() + times);
  }
  index_lengths(counts.size());
}

void PackingTable::index_lengths(std::size_t num_lengths) {
  use_begins_.assign(num_lengths + 1, 0);
  for (const Entry& entry : entries_) {
    ++use_begins_[entry.length + 1];
  }
  for (std::size_t length = 0; length < num_lengths; ++length) {
    use_begins_[length + 1] += use_begins_[length];
  }
  uses_.resize(entries_.size());
  std::vector<std::uint32_t> next(use_begins_.begin(), use_begins_.end() - 1);
  for (std::uint32_t pattern = 0; pattern < num_patterns(); ++pattern) {
    for (std::uint32_t e = entry_begins_[pattern]; e < entry_begins_[pattern + 1]; ++e) {
      uses_[next[entries_[e].length]++] = {.pattern = pattern, .entry = e};
    }
  }
}

std::size_t PackingTable::num_bytes() const noexcept {
  return entries_.size() * (sizeof(Entry) + sizeof(Use)) +
         num_patterns() * (sizeof(std::uint32_t) + sizeof(std::uint64_t)) + use_begins_.size() * sizeof(std::uint32_t);
}

PackingTable::Row PackingTable::row(std::uint64_t row) const noexcept {
  const auto pattern = static_cast<std::size_t>(std::ranges::upper_bound(row_begins_, row) - row_begins_.begin()) - 1;
  return {.entries =
              std::span(entries_).subspan(entry_begins_[pattern], entry_begins_[pattern + 1] - entry_begins_[pattern]),
          .nth = row - row_begins_[pattern]};
}

std::uint64_t PackingTable::row_of(std::uint32_t length, std::uint64_t piece) const noexcept {
  const auto uses = std::span(uses_).subspan(use_begins_[length], use_begins_[length + 1] - use_begins_[length]);
  const auto after =
      std::ranges::upper_bound(uses, piece, {}, [&](const Use& use) { return entries_[use.entry].first; });
  const Use& use = *(after - 1);
  const Entry& entry = entries_[use.entry];
  return row_begins_[use.pattern] + (piece - entry.first) / entry.each;
}

}  // namespace mtf
