#include "mtf/blend/blend_source.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/gather/cu_seqlens.hpp"

namespace mtf {

namespace {

// Draws computed at once where one rank takes them all: the fixed cost of a look into the schedule is shared by them.
constexpr std::size_t kDrawsAhead = 1024;

/// The samples of a batch sorted by source, stably, each with the slot that it goes to. Kept for the next batch of the
/// thread, so that it costs no memory.
struct BySource {
  std::vector<std::size_t> begins;  // one more than sources
  std::vector<std::size_t> next;
  std::vector<std::uint64_t> places;
  std::vector<std::uint64_t> passes;
  std::vector<std::uint32_t> slots;

  void sort(const SampleDraws& draws, std::size_t num_sources, bool own_slots) {
    begins.assign(num_sources + 1, 0);
    places.resize(draws.size());
    passes.resize(draws.size());
    slots.resize(draws.size());
    for (const std::int32_t source : draws.sources) {
      ++begins[static_cast<std::size_t>(source) + 1];
    }
    for (std::size_t i = 0; i < num_sources; ++i) {
      begins[i + 1] += begins[i];
    }
    next.assign(begins.begin(), begins.end() - 1);
    for (std::size_t k = 0; k < draws.size(); ++k) {
      const auto source = static_cast<std::size_t>(draws.sources[k]);
      const std::size_t at = next[source]++;
      places[at] = static_cast<std::uint64_t>(draws.places[k]);
      passes[at] = static_cast<std::uint64_t>(draws.passes[k]);
      slots[at] = static_cast<std::uint32_t>(own_slots ? at - begins[source] : k);
    }
  }

  [[nodiscard]] std::size_t num_rows(std::size_t source) const noexcept { return begins[source + 1] - begins[source]; }

  /// Writes the rows of one source, one run of samples of the same pass after the other.
  void write(const BlendPart& part, std::size_t source, std::span<std::byte* const> buffers) const {
    for (std::size_t begin = begins[source]; begin < begins[source + 1];) {
      std::size_t end = begin + 1;
      while (end < begins[source + 1] && passes[end] == passes[begin]) {
        ++end;
      }
      part.rows->write(part.key, passes[begin], std::span(places).subspan(begin, end - begin),
                       std::span(slots).subspan(begin, end - begin), buffers);
      begin = end;
    }
  }
};

/// As fill_cu_seqlens, for positions of 64 bits.
std::size_t fill_from_wide(const std::byte* positions, std::size_t num_items, std::int32_t* out) noexcept {
  std::size_t found = 0;
  for (std::size_t i = 0; i < num_items; ++i) {
    std::int64_t value;
    std::memcpy(&value, positions + i * sizeof(value), sizeof(value));
    out[found] = static_cast<std::int32_t>(i);
    found += value == 0 ? 1 : 0;
  }
  out[found++] = static_cast<std::int32_t>(num_items);
  return found;
}

/// Where documents begin in the rows laid flat, and the number of their items at the end.
void add_cu_seqlens(const RowField& field, const std::byte* positions, BufferPool& pool, StackedRows& stack) {
  const std::size_t num_items = stack.num_rows * field.row_bytes() / field.item_bytes;
  if (num_items > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw ConfigError(field.name +
                      ": a batch must have fewer than 2^31 of them, because cu_seqlens is int32, but has " +
                      std::to_string(num_items));
  }
  stack.cu_seqlens = pool.acquire((num_items + 1) * sizeof(std::int32_t));
  auto* const out = reinterpret_cast<std::int32_t*>(stack.cu_seqlens.data());
  stack.num_cu_seqlens = field.item_bytes == sizeof(std::int32_t)
                             ? fill_cu_seqlens({reinterpret_cast<const std::int32_t*>(positions), num_items}, out)
                             : fill_from_wide(positions, num_items, out);
}

std::size_t row_bytes_of(const BlendPart& part) noexcept {
  std::size_t sum = 0;
  for (const RowField& field : part.rows->fields()) {
    sum += field.row_bytes();
  }
  return sum;
}

}  // namespace

std::size_t BlendBatch::num_bytes() const noexcept {
  std::size_t sum = 0;
  for (const StackedRows& stack : stacks) {
    for (const Buffer& buffer : stack.buffers) {
      sum += buffer.num_bytes();
    }
    sum += stack.cu_seqlens.num_bytes();
  }
  return sum;
}

BlendSource::BlendSource(Schedule schedule, BatchSizes sizes, std::vector<BlendPart> parts, Spec spec,
                         std::shared_ptr<BufferPool> pool)
    : sizes_(std::move(sizes)), spec_(spec), pool_(std::move(pool)) {
  if (spec_.batches_per_pass == 0) {
    throw ConfigError("batches_per_pass: must be at least 1, but is 0");
  }
  if (spec_.rank >= spec_.world_size) {
    throw ConfigError("rank: must be less than world_size (" + std::to_string(spec_.world_size) + "), but is " +
                      std::to_string(spec_.rank));
  }
  if (sizes_.smallest() < spec_.world_size) {
    throw ConfigError("global_batch_size: must be at least the number of ranks, " + std::to_string(spec_.world_size) +
                      ", but is " + std::to_string(sizes_.smallest()));
  }
  plan_ = make_plan(std::move(schedule), std::move(parts), 0);
}

std::shared_ptr<BlendSource::Plan> BlendSource::make_plan(Schedule schedule, std::vector<BlendPart> parts,
                                                          std::uint64_t version) const {
  const std::vector<SourceSpec>& sources = schedule.spec().sources;
  if (sources.size() != parts.size()) {
    throw ConfigError("parts: must be one per source of the schedule (" + std::to_string(sources.size()) +
                      "), but are " + std::to_string(parts.size()));
  }
  const BlendPart* first = nullptr;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].rows) {
      if (sources[i].present) {
        throw ConfigError("source '" + sources[i].name + "' has no rows to draw from");
      }
      continue;
    }
    if (sources[i].length != parts[i].rows->num_rows()) {
      throw ConfigError("source '" + sources[i].name + "' has " + std::to_string(parts[i].rows->num_rows()) +
                        " rows, but another length in the schedule");
    }
    if (first == nullptr) {
      first = &parts[i];
    }
    if (!spec_.by_source && !std::ranges::equal(first->rows->fields(), parts[i].rows->fields())) {
      throw ConfigError("source '" + sources[i].name +
                        "': its rows can't be stacked with those of the first source, because their fields differ");
    }
  }
  if (first == nullptr) {
    throw ConfigError("parts: must be at least one source, but there is none");
  }
  return std::make_shared<Plan>(std::move(schedule), std::move(parts), version);
}

std::shared_ptr<BlendSource::Plan> BlendSource::plan() const {
  const std::lock_guard lock(mutex_);
  return plan_;
}

void BlendSource::follow(Schedule schedule, std::vector<BlendPart> parts) {
  std::shared_ptr<Plan> next = make_plan(std::move(schedule), std::move(parts), version() + 1);
  const std::lock_guard lock(mutex_);
  plan_ = std::move(next);
}

std::uint64_t BlendSource::version() const { return plan()->version; }

void BlendSource::Plan::draw(std::uint64_t begin, std::size_t size, std::size_t block, SampleDraws& out) {
  if (begin > BatchSizes::kMaxSamples - size) {
    throw std::out_of_range("samples are numbered below 2^61, but " + std::to_string(size) + " are asked for from " +
                            std::to_string(begin) + " on");
  }
  out.resize(size);
  const std::lock_guard lock(mutex);
  if (begin < ahead_begin || begin + size > ahead_begin + ahead.size()) {
    ahead.resize(std::max(size, block));
    ahead_begin = begin;
    try {
      schedule.seek(0, begin);
      ahead.resize(schedule.draws(ahead.sources, ahead.passes, ahead.places));
    } catch (...) {
      ahead.resize(0);
      throw;
    }
    if (ahead.size() < size) {
      throw std::out_of_range("the schedule ends before sample " + std::to_string(begin + size));
    }
  }
  const auto at = static_cast<std::ptrdiff_t>(begin - ahead_begin);
  std::copy_n(ahead.sources.begin() + at, size, out.sources.begin());
  std::copy_n(ahead.passes.begin() + at, size, out.passes.begin());
  std::copy_n(ahead.places.begin() + at, size, out.places.begin());
}

SampleDraws BlendSource::draws(std::uint64_t begin, std::size_t size) {
  SampleDraws out;
  plan()->draw(begin, size, 0, out);
  return out;
}

ShardRange BlendSource::samples_of(std::uint64_t batch) const {
  const ShardRange part = shard(sizes_.size(batch), spec_.rank, spec_.world_size);
  const std::uint64_t start = sizes_.start(batch);
  return {start + part.begin, start + part.end};
}

StackedRows BlendSource::make_stack(const Plan& plan, std::int32_t source, std::uint64_t num_rows) const {
  StackedRows stack{.source = source, .num_rows = num_rows, .buffers = {}, .cu_seqlens = {}, .num_cu_seqlens = 0};
  for (const RowField& field : plan.parts[static_cast<std::size_t>(source)].rows->fields()) {
    const std::size_t row_bytes = field.row_bytes();
    if (row_bytes != 0 && num_rows > std::numeric_limits<std::size_t>::max() / row_bytes) {
      throw std::bad_alloc();
    }
    stack.buffers.push_back(pool_->acquire(num_rows * row_bytes));
  }
  return stack;
}

void BlendSource::gather(const Plan& plan, const SampleDraws& draws, BlendBatch& batch) const {
  thread_local BySource sorted;
  sorted.sort(draws, plan.parts.size(), spec_.by_source);
  std::vector<std::byte*> buffers;
  for (std::size_t i = 0; i < plan.parts.size(); ++i) {
    if (sorted.num_rows(i) == 0) {
      continue;
    }
    if (batch.stacks.empty() || spec_.by_source) {
      batch.stacks.push_back(
          make_stack(plan, static_cast<std::int32_t>(i), spec_.by_source ? sorted.num_rows(i) : draws.size()));
      buffers.clear();
      for (const Buffer& buffer : batch.stacks.back().buffers) {
        buffers.push_back(buffer.data());
      }
    }
    sorted.write(plan.parts[i], i, buffers);
  }
  for (StackedRows& stack : batch.stacks) {
    const std::span<const RowField> fields = plan.parts[static_cast<std::size_t>(stack.source)].rows->fields();
    const auto found = std::ranges::find(fields, true, &RowField::counts_positions);
    if (found == fields.end()) {
      continue;
    }
    add_cu_seqlens(*found, stack.buffers[static_cast<std::size_t>(found - fields.begin())].data(), *pool_, stack);
  }
}

std::unique_ptr<Payload> BlendSource::fetch(std::uint64_t pass, std::uint64_t batch) {
  const auto number = pass * static_cast<unsigned __int128>(spec_.batches_per_pass) + batch;
  if (number >= BatchSizes::kMaxSamples) {
    throw std::out_of_range("batch: must be below 2^61");
  }
  const ShardRange range = samples_of(static_cast<std::uint64_t>(number));
  const std::shared_ptr<Plan> plan = this->plan();
  thread_local SampleDraws draws;
  plan->draw(range.begin, range.size(), spec_.world_size == 1 ? kDrawsAhead : 0, draws);
  auto made = std::make_unique<BlendBatch>();
  made->pass = pass;
  made->batch = batch;
  made->version = plan->version;
  gather(*plan, draws, *made);
  return made;
}

std::unique_ptr<BlendBatch> BlendSource::fetch_samples(std::span<const std::uint64_t> positions) {
  const std::shared_ptr<Plan> plan = this->plan();
  SampleDraws draws, run;
  for (std::size_t begin = 0; begin < positions.size();) {
    std::size_t end = begin + 1;
    while (end < positions.size() && positions[end] == positions[end - 1] + 1) {
      ++end;
    }
    plan->draw(positions[begin], end - begin, 0, run);
    draws.sources.insert(draws.sources.end(), run.sources.begin(), run.sources.end());
    draws.passes.insert(draws.passes.end(), run.passes.begin(), run.passes.end());
    draws.places.insert(draws.places.end(), run.places.begin(), run.places.end());
    begin = end;
  }
  auto made = std::make_unique<BlendBatch>();
  made->version = plan->version;
  gather(*plan, draws, *made);
  return made;
}

std::size_t BlendSource::max_batch_bytes() const noexcept {
  const std::shared_ptr<Plan> plan = this->plan();
  std::size_t most = 0;
  for (const BlendPart& part : plan->parts) {
    if (part.rows) {
      most = std::max(most, row_bytes_of(part));
    }
  }
  const std::uint64_t num_rows = shard(sizes_.largest(), 0, spec_.world_size).size();
  return most != 0 && num_rows > std::numeric_limits<std::size_t>::max() / most
             ? std::numeric_limits<std::size_t>::max()
             : num_rows * most;
}

}  // namespace mtf
