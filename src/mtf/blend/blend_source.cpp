#include "mtf/blend/blend_source.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/gather/byte_count.hpp"
#include "mtf/gather/cu_seqlens.hpp"

namespace mtf {

namespace {

// Samples found at once where one rank takes them all: the fixed cost of a look into the schedule and into each source
// is shared by them.
constexpr std::uint64_t kSamplesPerBlock = 2048;

/// The samples of a batch sorted by source, stably, each with the slot that it goes to. Kept for the next batch of the
/// thread, so that it costs no memory.
struct BySource {
  std::vector<std::size_t> begins;  // one more than sources
  std::vector<std::size_t> next;
  std::vector<std::uint64_t> rows;
  std::vector<std::uint64_t> passes;
  std::vector<std::uint32_t> slots;

  void sort(const SampleSpan& samples, std::size_t num_sources, bool own_slots) {
    begins.assign(num_sources + 1, 0);
    rows.resize(samples.size());
    passes.resize(samples.size());
    slots.resize(samples.size());
    for (const std::int32_t source : samples.sources) {
      ++begins[static_cast<std::size_t>(source) + 1];
    }
    for (std::size_t i = 0; i < num_sources; ++i) {
      begins[i + 1] += begins[i];
    }
    next.assign(begins.begin(), begins.end() - 1);
    for (std::size_t k = 0; k < samples.size(); ++k) {
      const auto source = static_cast<std::size_t>(samples.sources[k]);
      const std::size_t at = next[source]++;
      rows[at] = samples.rows[k];
      passes[at] = samples.passes[k];
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
      part.rows->write_rows(part.key, passes[begin], std::span(rows).subspan(begin, end - begin),
                            std::span(slots).subspan(begin, end - begin), buffers);
      begin = end;
    }
  }
};

/// Per field where each source's rows lie; empty if a source's rows aren't those of arrays, or not dense.
std::vector<std::vector<RowBase>> find_bases(std::span<const BlendPart> parts) {
  std::vector<std::vector<RowBase>> bases;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].rows) {
      continue;
    }
    const std::span<const ArrayView> arrays = parts[i].rows->arrays();
    if (arrays.empty() || std::ranges::any_of(arrays, [](const ArrayView& view) { return !view.axes.empty(); })) {
      return {};
    }
    bases.resize(arrays.size(), std::vector<RowBase>(parts.size()));
    for (std::size_t field = 0; field < arrays.size(); ++field) {
      bases[field][i] = {.data = arrays[field].data, .stride_bytes = arrays[field].row_stride_bytes};
    }
  }
  return bases;
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
                             : fill_cu_seqlens({reinterpret_cast<const std::int64_t*>(positions), num_items}, out);
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
  return std::make_shared<Plan>(std::move(schedule), std::move(parts), version, spec_.by_source);
}

std::shared_ptr<BlendSource::Plan> BlendSource::plan() const {
  const std::lock_guard lock(mutex_);
  return plan_;
}

void BlendSource::follow(Schedule schedule, std::vector<BlendPart> parts) {
  std::shared_ptr<Plan> next = make_plan(std::move(schedule), std::move(parts), version() + 1);
  const std::lock_guard lock(mutex_);
  plan_ = std::move(next);
  version_.store(plan_->version, std::memory_order_release);
}

BlendSource::Plan::Plan(Schedule schedule, std::vector<BlendPart> of, std::uint64_t number, bool by_source)
    : parts(std::move(of)),
      version(number),
      bases(by_source ? std::vector<std::vector<RowBase>>() : find_bases(parts)),
      finder(std::move(schedule), parts, bases.empty()) {}

SampleDraws BlendSource::draws(std::uint64_t begin, std::size_t size) {
  return plan()->finder.draws({.begin = begin, .size = size});
}

ShardRange BlendSource::samples_of(std::uint64_t batch) const {
  const ShardRange part = shard(sizes_.size(batch), spec_.rank, spec_.world_size);
  const std::uint64_t start = sizes_.start(batch);
  return {start + part.begin, start + part.end};
}

StackedRows BlendSource::make_stack(const Plan& plan, std::int32_t source, std::uint64_t num_rows) const {
  StackedRows stack{.source = source, .num_rows = num_rows, .buffers = {}, .cu_seqlens = {}, .num_cu_seqlens = 0};
  for (const RowField& field : plan.parts[static_cast<std::size_t>(source)].rows->fields()) {
    stack.buffers.push_back(pool_->acquire(bytes_of_rows(num_rows, field.row_bytes())));
  }
  return stack;
}

void BlendSource::gather_by_source(const Plan& plan, const SampleSpan& samples, BlendBatch& batch) const {
  thread_local BySource sorted;
  sorted.sort(samples, plan.parts.size(), spec_.by_source);
  std::vector<std::byte*> buffers;
  for (std::size_t i = 0; i < plan.parts.size(); ++i) {
    if (sorted.num_rows(i) == 0) {
      continue;
    }
    if (batch.stacks.empty() || spec_.by_source) {
      batch.stacks.push_back(
          make_stack(plan, static_cast<std::int32_t>(i), spec_.by_source ? sorted.num_rows(i) : samples.size()));
      buffers.clear();
      for (const Buffer& buffer : batch.stacks.back().buffers) {
        buffers.push_back(buffer.data());
      }
    }
    sorted.write(plan.parts[i], i, buffers);
  }
}

void BlendSource::gather(const Plan& plan, const SampleSpan& samples, BlendBatch& batch) const {
  if (plan.bases.empty()) {
    gather_by_source(plan, samples, batch);
  } else if (samples.size() > 0) {
    const std::int32_t source = samples.sources[0];
    const std::span<const RowField> fields = plan.parts[static_cast<std::size_t>(source)].rows->fields();
    const StackedRows& stack = batch.stacks.emplace_back(make_stack(plan, source, samples.size()));
    for (std::size_t field = 0; field < fields.size(); ++field) {
      gather_mixed(plan.bases[field], fields[field].row_bytes(), samples.sources, samples.rows,
                   stack.buffers[field].data());
    }
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
  const std::shared_ptr<Plan> plan = this->plan();
  auto made = std::make_unique<BlendBatch>();
  made->pass = pass;
  made->batch = batch;
  made->version = plan->version;
  gather(*plan, find(*plan, static_cast<std::uint64_t>(number)), *made);
  return made;
}

SampleSpan BlendSource::find(Plan& plan, std::uint64_t batch) const {
  const ShardRange part = samples_of(batch);
  const SampleRange range{.begin = part.begin, .size = part.size()};
  if (spec_.world_size > 1) {
    thread_local SampleRows memory;
    return plan.finder.find(range, memory);
  }
  // Batches of one size that lie in one block, whichever of them is asked for first.
  const std::uint64_t num_batches = std::max<std::uint64_t>(1, kSamplesPerBlock / range.size);
  const std::uint64_t num_before = std::min(range.begin, batch % num_batches * range.size);
  return plan.finder.find_in_block(range, {.begin = range.begin - num_before, .size = num_batches * range.size});
}

std::unique_ptr<BlendBatch> BlendSource::fetch_samples(std::span<const std::uint64_t> positions) {
  const std::shared_ptr<Plan> plan = this->plan();
  SampleRows all, memory;
  for (std::size_t begin = 0; begin < positions.size();) {
    std::size_t end = begin + 1;
    while (end < positions.size() && positions[end] == positions[end - 1] + 1) {
      ++end;
    }
    const SampleSpan run = plan->finder.find({.begin = positions[begin], .size = end - begin}, memory);
    all.sources.insert(all.sources.end(), run.sources.begin(), run.sources.end());
    all.passes.insert(all.passes.end(), run.passes.begin(), run.passes.end());
    all.rows.insert(all.rows.end(), run.rows.begin(), run.rows.end());
    begin = end;
  }
  auto made = std::make_unique<BlendBatch>();
  made->version = plan->version;
  gather(*plan, {.sources = all.sources, .passes = all.passes, .rows = all.rows, .block = nullptr}, *made);
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
  return bytes_of_rows(shard(sizes_.largest(), 0, spec_.world_size).size(), most);
}

}  // namespace mtf
