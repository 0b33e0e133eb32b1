#include "mtf/gather/row_batches.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/gather/byte_count.hpp"
#include "mtf/gather/cu_seqlens.hpp"

namespace mtf {

namespace {

std::uint64_t count_batches(std::uint64_t num_rows, const RowBatchSpec& spec) {
  if (spec.batch_size == 0) {
    throw ConfigError("batch_size: must be at least 1, but is 0");
  }
  if (spec.rank >= spec.world_size) {
    throw ConfigError("rank: must be less than world_size (" + std::to_string(spec.world_size) + "), but is " +
                      std::to_string(spec.rank));
  }
  return num_rows / spec.batch_size + (!spec.drop_last && num_rows % spec.batch_size != 0 ? 1 : 0);
}

}  // namespace

std::size_t RowBatch::num_bytes() const noexcept {
  std::size_t sum = cu_seqlens.num_bytes();
  for (const Buffer& buffer : buffers) {
    sum += buffer.num_bytes();
  }
  return sum;
}

RowBatches::RowBatches(std::shared_ptr<const RowSource> rows, RowBatchSpec spec, std::shared_ptr<BufferPool> pool)
    : rows_(std::move(rows)),
      spec_(spec),
      pool_(std::move(pool)),
      num_batches_(count_batches(rows_->num_rows(), spec)) {
  if (spec_.rest && (spec_.rest->num_samples != rows_->num_rows() || spec_.rest->first_sample > rows_->num_rows())) {
    throw ConfigError("rest: must be of as many samples as there are rows");
  }
}

ShardRange RowBatches::batches(std::uint64_t pass) const {
  if (!is_rest(pass)) {
    return {0, num_batches_};
  }
  const RestOfPass& rest = *spec_.rest;
  return {rest.first_batch, rest.first_batch + count_batches(rest.num_samples - rest.first_sample, spec_)};
}

ShardRange RowBatches::places(std::uint64_t pass, std::uint64_t batch) const noexcept {
  const std::uint64_t first = is_rest(pass) ? spec_.rest->first_sample : 0;
  const std::uint64_t begin = first + (batch - (is_rest(pass) ? spec_.rest->first_batch : 0)) * spec_.batch_size;
  const ShardRange part = shard(std::min(spec_.batch_size, rows_->num_rows() - begin), spec_.rank, spec_.world_size);
  return part.size() == 0 ? ShardRange{begin, begin + 1} : ShardRange{begin + part.begin, begin + part.end};
}

std::unique_ptr<Payload> RowBatches::fetch(std::uint64_t pass, std::uint64_t batch) {
  if (const ShardRange there = batches(pass); batch < there.begin || batch >= there.end) {
    throw std::out_of_range("batch: must be in [" + std::to_string(there.begin) + ", " + std::to_string(there.end) +
                            "), but is " + std::to_string(batch));
  }
  const ShardRange range = places(pass, batch);
  if (range.size() > std::numeric_limits<std::uint32_t>::max()) {
    throw std::bad_alloc();
  }
  std::vector<std::uint64_t> of_rows(range.size());
  std::iota(of_rows.begin(), of_rows.end(), range.begin);
  std::vector<std::uint32_t> slots(range.size());
  std::iota(slots.begin(), slots.end(), std::uint32_t{0});
  auto made = std::make_unique<RowBatch>();
  made->pass = pass;
  made->batch = batch;
  made->num_rows = range.size();
  std::vector<std::byte*> buffers;
  for (const RowField& field : rows_->fields()) {
    made->buffers.push_back(pool_->acquire(bytes_of_rows(range.size(), field.row_bytes())));
    buffers.push_back(made->buffers.back().data());
  }
  rows_->write(spec_.key, pass, of_rows, slots, buffers);
  add_cu_seqlens(*made);
  return made;
}

void RowBatches::add_cu_seqlens(RowBatch& batch) const {
  const std::span<const RowField> fields = rows_->fields();
  const auto found = std::ranges::find(fields, true, &RowField::counts_positions);
  if (found == fields.end()) {
    return;
  }
  if (found->item_bytes != sizeof(std::int32_t)) {
    throw ConfigError(found->name + ": positions must be int32");
  }
  const std::size_t num_items = batch.num_rows * found->row_bytes() / sizeof(std::int32_t);
  if (num_items > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw ConfigError("batch_size: a batch must have fewer than 2^31 tokens, because cu_seqlens is int32, but has " +
                      std::to_string(num_items));
  }
  const std::byte* const positions = batch.buffers[static_cast<std::size_t>(found - fields.begin())].data();
  batch.cu_seqlens = pool_->acquire((num_items + 1) * sizeof(std::int32_t));
  batch.num_cu_seqlens = fill_cu_seqlens({reinterpret_cast<const std::int32_t*>(positions), num_items},
                                         reinterpret_cast<std::int32_t*>(batch.cu_seqlens.data()));
}

std::size_t RowBatches::max_batch_bytes() const noexcept {
  if (num_batches_ == 0) {
    return 0;
  }
  const std::uint64_t num_rows = std::max<std::uint64_t>(
      1, shard(std::min(spec_.batch_size, rows_->num_rows()), spec_.rank, spec_.world_size).size());
  std::size_t sum = 0;
  for (const RowField& field : rows_->fields()) {
    std::size_t bytes = bytes_of_rows(num_rows, field.row_bytes());
    if (field.counts_positions) {
      bytes = add_bytes(bytes, bytes + sizeof(std::int32_t));
    }
    sum = add_bytes(sum, bytes);
  }
  return sum;
}

}  // namespace mtf
