/// Which row each sample of a run is: its source, the source's pass, and the row's number.
///
/// A source's samples follow one another in its passes, so the rows of a stretch of samples are found source by source,
/// in runs, and then dealt out in the order of the samples. Neighbouring batches take theirs from one block: what a
/// stretch costs whatever its length is shared by them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "mtf/gather/row_source.hpp"
#include "mtf/random/key.hpp"
#include "mtf/schedule/schedule.hpp"

namespace mtf {

/// A source of a blend. `rows` is null for one that was removed.
struct BlendPart {
  std::shared_ptr<const RowSource> rows;
  Key key;
};

/// Samples, one per entry: its source, and the pass and place in which it stands there. `places` are below the source's
/// number of rows.
struct SampleDraws {
  std::vector<std::int32_t> sources;
  std::vector<std::int64_t> passes;
  std::vector<std::int64_t> places;

  [[nodiscard]] std::size_t size() const noexcept { return sources.size(); }
  void resize(std::size_t size) {
    sources.resize(size);
    passes.resize(size);
    places.resize(size);
  }
};

/// Samples, one per entry: its source, the source's pass, and its row as `RowSource::find_rows` numbers it.
struct SampleRows {
  std::vector<std::int32_t> sources;
  std::vector<std::uint64_t> passes;  ///< empty where nobody needs them
  std::vector<std::uint64_t> rows;
};

/// Part of a SampleRows. Valid as long as `block`, or as the memory that was given to the finder.
struct SampleSpan {
  std::span<const std::int32_t> sources;
  std::span<const std::uint64_t> passes;
  std::span<const std::uint64_t> rows;
  std::shared_ptr<const void> block;

  [[nodiscard]] std::size_t size() const noexcept { return sources.size(); }
};

/// Samples [begin, begin + size) of a run.
struct SampleRange {
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

/// Thread safety: all methods.
class SampleFinder {
 public:
  /// `with_passes`: whether the passes are wanted, too.
  SampleFinder(Schedule schedule, std::span<const BlendPart> parts, bool with_passes);

  /// Where the samples of `range` stand. Throws: std::out_of_range beyond 2^61 samples or the schedule's end.
  [[nodiscard]] SampleDraws draws(SampleRange range);

  /// The rows of `range`, written to `memory`. Throws: as `draws`, and for samples of a source that was removed.
  [[nodiscard]] SampleSpan find(SampleRange range, SampleRows& memory);

  /// The rows of `range`, from a block of samples that holds all of `around`, which is kept for the next calls.
  /// Requires that `range` lies within `around`. Throws: as `find`, for the samples of `around`.
  [[nodiscard]] SampleSpan find_in_block(SampleRange range, SampleRange around);

 private:
  struct Block {
    SampleRange range;
    std::vector<Schedule::SegmentDraws> drawn;
    SampleRows samples;
    std::once_flag found;
  };
  void draw(SampleRange range, SampleRows& samples, std::vector<Schedule::SegmentDraws>& drawn);
  [[nodiscard]] std::shared_ptr<Block> block_of(SampleRange range);
  void find_rows(std::span<const Schedule::SegmentDraws> drawn, SampleRows& samples) const;

  const std::vector<BlendPart> parts_;
  const bool with_passes_;
  const std::uint64_t edited_at_;  // sources may be missing for samples before
  std::mutex mutex_;
  Schedule schedule_;
  std::array<std::shared_ptr<Block>, 4> blocks_;  // threads that fetch at a block's end use both
  std::size_t next_block_ = 0;
};

}  // namespace mtf
