#include "mtf/schedule/epoch_report.hpp"

#include <algorithm>
#include <cmath>

namespace mtf {

namespace {

constexpr std::uint64_t kChunk = 1 << 14;

/// What a source was promised when the segment began, and its share per step in it.
class Expectation {
 public:
  Expectation(double before, double share, std::uint64_t begin) : before_(before), share_(share), begin_(begin) {}
  [[nodiscard]] double at(std::uint64_t step) const noexcept {
    return before_ + share_ * static_cast<double>(step - begin_);
  }

 private:
  double before_;
  double share_;
  std::uint64_t begin_;
};

void widen(SourceReport& source, double expected) {
  source.max_deviation = std::max(source.max_deviation, std::abs(static_cast<double>(source.num_steps) - expected));
}

}  // namespace

EpochReport make_report(std::span<const Epoch::SegmentRange> ranges) {
  EpochReport report;
  std::vector<std::int32_t> drawn;
  bool is_certain = !ranges.empty() && ranges.front().begin == 0;
  for (const Epoch::SegmentRange& range : ranges) {
    const Segment& segment = *range.segment;
    const std::size_t num_before = report.sources.size();
    report.sources.resize(segment.breakpoint().sources.size());
    for (std::size_t i = num_before; i < report.sources.size(); ++i) {
      report.sources[i].begin = segment.breakpoint().sources[i].position;
      // Steps that aren't known any more count as drawn in the shares that were promised.
      report.sources[i].num_steps = segment.breakpoint().sources[i].count;
      report.sources[i].expected = static_cast<double>(report.sources[i].num_steps);
    }
    const bool has_shares = !segment.shares().empty();
    std::vector<Expectation> expectations;
    for (std::size_t i = 0; i < report.sources.size(); ++i) {
      expectations.emplace_back(report.sources[i].expected, has_shares ? segment.shares()[i] : 0.0, range.begin);
    }
    for (std::uint64_t begin = range.begin; begin < range.end; begin += kChunk) {
      drawn.resize(std::min(kChunk, range.end - begin));
      segment.fill(begin, drawn);
      for (std::size_t t = 0; t < drawn.size(); ++t) {
        // The distance is largest just before or just after a draw of the source.
        const auto i = static_cast<std::size_t>(drawn[t]);
        SourceReport& source = report.sources[i];
        if (has_shares) {
          widen(source, expectations[i].at(begin + t));
        }
        ++source.num_steps;
        if (has_shares) {
          widen(source, expectations[i].at(begin + t + 1));
        }
      }
    }
    for (std::size_t i = 0; i < report.sources.size(); ++i) {
      SourceReport& source = report.sources[i];
      source.expected = expectations[i].at(range.end);
      if (has_shares) {
        widen(source, source.expected);
      }
      source.end = segment.pass_position(i, source.num_steps);
    }
    // A segment that continues one counts the sources' deficits in; others count from their own start.
    const bool counts_on = segment.breakpoint().continues || &range == &ranges.front();
    const std::optional<double> bound = segment.deviation_bound();
    is_certain = is_certain && counts_on && bound;
    report.deviation_bound = is_certain ? std::max(report.deviation_bound, *bound) : 0.0;
    report.num_steps = range.end;
  }
  return report;
}

}  // namespace mtf
