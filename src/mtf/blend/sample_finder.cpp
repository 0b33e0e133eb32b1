#include "mtf/blend/sample_finder.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/blend/batch_sizes.hpp"

namespace mtf {

namespace {

void check(SampleRange range) {
  if (range.size > BatchSizes::kMaxSamples || range.begin > BatchSizes::kMaxSamples - range.size) {
    throw std::out_of_range("samples are numbered below 2^61, but " + std::to_string(range.size) +
                            " are asked for from " + std::to_string(range.begin) + " on");
  }
}

/// The schedule of a blend never ends its epoch.
constexpr EpochIndex kOnlyEpoch{};

[[noreturn]] void throw_end(SampleRange range) {
  throw std::out_of_range("the schedule ends before sample " + std::to_string(range.begin + range.size));
}

std::uint64_t num_drawn(std::span<const Schedule::SegmentDraws> drawn) noexcept {
  std::uint64_t sum = 0;
  for (const Schedule::SegmentDraws& part : drawn) {
    sum += part.size;
  }
  return sum;
}

/// The rows of a stretch of samples, source by source. Kept for the next stretch of the thread.
struct Found {
  std::vector<std::size_t> next;  // per source, the first row not yet dealt out
  std::vector<std::uint64_t> places;
  std::vector<std::uint64_t> rows;
  std::vector<std::uint64_t> passes;
};

}  // namespace

SampleFinder::SampleFinder(Schedule schedule, std::span<const BlendPart> parts, bool with_passes)
    : parts_(parts.begin(), parts.end()),
      with_passes_(with_passes),
      edited_at_(schedule.step()),
      schedule_(std::move(schedule)) {}

SampleDraws SampleFinder::draws(SampleRange range) {
  check(range);
  SampleDraws out;
  out.resize(range.size);
  const std::lock_guard lock(mutex_);
  schedule_.seek(kOnlyEpoch, range.begin);
  if (schedule_.draws(out.sources, out.passes, out.places) < range.size) {
    throw_end(range);
  }
  return out;
}

void SampleFinder::draw(SampleRange range, SampleRows& samples, std::vector<Schedule::SegmentDraws>& drawn) {
  samples.sources.resize(range.size);
  const std::lock_guard lock(mutex_);
  schedule_.seek(kOnlyEpoch, range.begin);
  drawn = schedule_.source_draws(samples.sources);
  if (num_drawn(drawn) < range.size) {
    throw_end(range);
  }
}

SampleSpan SampleFinder::find(SampleRange range, SampleRows& memory) {
  check(range);
  std::vector<Schedule::SegmentDraws> drawn;
  draw(range, memory, drawn);
  find_rows(drawn, memory);
  return {.sources = memory.sources, .passes = memory.passes, .rows = memory.rows, .block = nullptr};
}

SampleSpan SampleFinder::find_in_block(SampleRange range, SampleRange around) {
  check(range);
  if (range.begin < edited_at_ || around.begin + around.size > BatchSizes::kMaxSamples) {
    around = range;  // samples that aren't asked for may have no source, or no number
  } else if (around.begin < edited_at_) {
    around = {.begin = edited_at_, .size = around.begin + around.size - edited_at_};
  }
  const std::shared_ptr<Block> block = block_of(around);
  if (range.begin + range.size > block->range.begin + block->range.size) {
    throw_end(range);
  }
  std::call_once(block->found, [&] { find_rows(block->drawn, block->samples); });
  const SampleRows& samples = block->samples;
  const std::size_t at = range.begin - block->range.begin;
  return {.sources = std::span(samples.sources).subspan(at, range.size),
          .passes = with_passes_ ? std::span(samples.passes).subspan(at, range.size) : std::span<const std::uint64_t>(),
          .rows = std::span(samples.rows).subspan(at, range.size),
          .block = block};
}

std::shared_ptr<SampleFinder::Block> SampleFinder::block_of(SampleRange range) {
  const std::lock_guard lock(mutex_);
  for (const std::shared_ptr<Block>& block : blocks_) {
    if (block && block->range.begin == range.begin && block->range.size >= range.size) {
      return block;
    }
  }
  auto made = std::make_shared<Block>();
  made->range = range;
  made->samples.sources.resize(range.size);
  schedule_.seek(kOnlyEpoch, range.begin);
  made->drawn = schedule_.source_draws(made->samples.sources);
  made->range.size = num_drawn(made->drawn);
  blocks_[next_block_] = made;
  next_block_ = (next_block_ + 1) % blocks_.size();
  return made;
}

void SampleFinder::find_rows(std::span<const Schedule::SegmentDraws> drawn, SampleRows& samples) const {
  thread_local Found found;
  samples.rows.resize(num_drawn(drawn));
  samples.passes.resize(with_passes_ ? samples.rows.size() : 0);
  std::size_t done = 0;
  for (const Schedule::SegmentDraws& draws : drawn) {
    found.places.resize(draws.size);
    found.rows.resize(draws.size);
    found.passes.resize(with_passes_ ? draws.size : 0);
    found.next.resize(draws.after.size());
    std::size_t at = 0;
    for (std::size_t i = 0; i < draws.after.size(); ++i) {
      found.next[i] = at;
      std::uint64_t left = draws.after[i] - draws.before[i];
      if (left == 0) {
        continue;
      }
      const BlendPart& part = parts_[i];
      if (!part.rows) {
        throw std::out_of_range("samples are asked for that lie before an edit, of a source that was removed by it");
      }
      const std::uint64_t length = draws.segment->breakpoint().spec->sources[i].pass_limit();
      PassPosition next = draws.segment->pass_position(i, draws.before[i]);
      while (left > 0) {
        if (next.batch == length) {
          next = {next.pass + 1, 0};
        }
        const std::size_t num = std::min(left, length - next.batch);
        const auto places = std::span(found.places).subspan(at, num);
        std::iota(places.begin(), places.end(), next.batch);
        part.rows->find_rows(part.key, next.pass, places, std::span(found.rows).subspan(at, num));
        if (with_passes_) {
          std::fill_n(found.passes.begin() + static_cast<std::ptrdiff_t>(at), num, next.pass);
        }
        next.batch += num;
        at += num;
        left -= num;
      }
    }
    const auto sources = std::span(samples.sources).subspan(done, draws.size);
    for (std::size_t k = 0; k < sources.size(); ++k) {
      const std::size_t from = found.next[static_cast<std::size_t>(sources[k])]++;
      samples.rows[done + k] = found.rows[from];
      if (with_passes_) {
        samples.passes[done + k] = found.passes[from];
      }
    }
    done += draws.size;
  }
}

}  // namespace mtf
