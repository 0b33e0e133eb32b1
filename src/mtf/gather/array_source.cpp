#include "mtf/gather/array_source.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/gather/byte_count.hpp"
#include "mtf/gather/gather.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

/// The row numbers of a batch; small batches need no memory of their own.
class RowNumbers {
 public:
  explicit RowNumbers(std::size_t size) : size_(size) {
    if (size > near_.size()) {
      far_.resize(size);
    }
  }

  [[nodiscard]] std::span<std::int64_t> span() noexcept { return {far_.empty() ? near_.data() : far_.data(), size_}; }

 private:
  std::size_t size_;
  std::array<std::int64_t, 512> near_;
  std::vector<std::int64_t> far_;
};

}  // namespace

ArraySource::ArraySource(std::vector<ArrayView> arrays, SamplerSpec spec, std::shared_ptr<BufferPool> pool)
    : arrays_(std::move(arrays)), sampler_(std::move(spec)), pool_(std::move(pool)) {
  if (arrays_.empty()) {
    throw ConfigError("arrays: must be at least one, but there is none");
  }
  for (std::size_t k = 0; k < arrays_.size(); ++k) {
    if (arrays_[k].num_rows != arrays_[0].num_rows) {
      throw ConfigError(
          format_message("arrays: must have the same number of rows, but array 0 has {} and array {} has {}",
                         arrays_[0].num_rows, k, arrays_[k].num_rows));
    }
  }
  if (!sampler_.spec().indices && sampler_.spec().num_samples != arrays_[0].num_rows) {
    throw ConfigError(format_message("num_samples: must be the arrays' number of rows ({}), but is {}",
                                     arrays_[0].num_rows, sampler_.spec().num_samples));
  }
}

std::unique_ptr<Payload> ArraySource::fetch(std::uint64_t pass, std::uint64_t batch) {
  if (batch >= sampler_.num_batches_in(pass)) {
    throw std::out_of_range(
        format_message("batch: must be in [0, {}), but is {}", sampler_.num_batches_in(pass), batch));
  }
  const SamplerSpec& spec = sampler_.spec();
  const ShardRange whole = sampler_.places(pass, batch);
  const ShardRange part = shard(whole.size(), spec.rank, spec.world_size);
  const std::uint64_t num_rows = std::max<std::uint64_t>(1, part.size());
  const std::uint64_t begin = whole.begin + (part.size() == 0 ? 0 : part.begin);
  const bool in_order = !spec.shuffle && !spec.indices;

  RowNumbers rows(in_order ? 0 : num_rows);
  if (!in_order) {
    sampler_.fill_order(pass, begin, rows.span());
  }
  std::vector<Buffer> buffers;
  buffers.reserve(arrays_.size());
  for (const ArrayView& array : arrays_) {
    Buffer buffer = pool_->acquire(bytes_of_rows(num_rows, array.row_bytes));
    if (in_order) {
      gather_range(array, begin, num_rows, buffer.data());
    } else {
      gather(array, rows.span(), buffer.data());
    }
    buffers.push_back(std::move(buffer));
  }
  return std::make_unique<ArrayBatch>(std::move(buffers), num_rows, pass, batch);
}

std::size_t ArraySource::max_batch_bytes() const noexcept {
  if (sampler_.num_batches() == 0) {
    return 0;
  }
  const std::size_t num_rows = std::max<std::size_t>(1, sampler_.part(0).size());
  std::size_t sum = 0;
  for (const ArrayView& array : arrays_) {
    sum = add_bytes(sum, bytes_of_rows(num_rows, array.row_bytes));
  }
  return sum;
}

}  // namespace mtf
