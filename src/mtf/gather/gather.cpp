#include "mtf/gather/gather.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

constexpr std::size_t kLineBytes = 64;

// How far ahead of the copy rows are requested, in cache lines. More than a core tracks at a time: while a row is
// copied the next requests already queue. Measured for rows of 256 B to 16 KiB, a quarter as many cost up to a third
// more.
constexpr std::size_t kLinesAhead = 128;

// The head of a long row is requested ahead; the processor's own prefetcher follows the rest.
constexpr std::size_t kMaxLinesPerRow = 64;

/// The last byte, too: a row that doesn't begin at a line ends in one more.
void request_row(const std::byte* row, std::size_t num_lines, std::size_t num_bytes) noexcept {
  for (std::size_t line = 0; line < num_lines; ++line) {
    __builtin_prefetch(row + line * kLineBytes);
  }
  __builtin_prefetch(row + num_bytes - 1);
}

/// Slots that don't follow one another start a new stream of writes each, which the processor doesn't see coming.
void request_slot(const std::byte* slot, std::size_t num_lines) noexcept {
  for (std::size_t line = 0; line < num_lines; ++line) {
    __builtin_prefetch(slot + line * kLineBytes, 1);
  }
}

constexpr auto in_order = [](std::size_t k) { return k; };

/// Rows of `kBytes` bytes known to the compiler, which then copies with a few vector moves; 0 = `num_bytes`. Row k
/// begins at `at(k)`.
template <std::size_t kBytes, typename At, typename SlotAt>
void copy_sized(std::size_t num_bytes, std::size_t num_rows, At at, SlotAt slot_at, std::byte* out) {
  const std::size_t row_bytes = kBytes == 0 ? num_bytes : kBytes;
  const std::size_t num_lines = std::min(kMaxLinesPerRow, (row_bytes + kLineBytes - 1) / kLineBytes);
  const std::size_t ahead = std::clamp<std::size_t>(kLinesAhead / num_lines, 1, 32);
  for (std::size_t k = 0; k < std::min(ahead, num_rows); ++k) {
    request_row(at(k), num_lines, row_bytes);
  }
  for (std::size_t k = 0; k < num_rows; ++k) {
    if (k + ahead < num_rows) {
      request_row(at(k + ahead), num_lines, row_bytes);
      if constexpr (!std::is_same_v<SlotAt, std::remove_const_t<decltype(in_order)>>) {
        request_slot(out + slot_at(k + ahead) * row_bytes, num_lines);
      }
    }
    std::memcpy(out + slot_at(k) * row_bytes, at(k), row_bytes);
  }
}

template <typename At, typename SlotAt>
void copy_dense(std::size_t row_bytes, std::size_t num_rows, At at, SlotAt slot_at, std::byte* out) {
  switch (row_bytes) {
    case 1:
      return copy_sized<1>(row_bytes, num_rows, at, slot_at, out);
    case 2:
      return copy_sized<2>(row_bytes, num_rows, at, slot_at, out);
    case 4:
      return copy_sized<4>(row_bytes, num_rows, at, slot_at, out);
    case 8:
      return copy_sized<8>(row_bytes, num_rows, at, slot_at, out);
    case 16:
      return copy_sized<16>(row_bytes, num_rows, at, slot_at, out);
    case 32:
      return copy_sized<32>(row_bytes, num_rows, at, slot_at, out);
    case 64:
      return copy_sized<64>(row_bytes, num_rows, at, slot_at, out);
    case 128:
      return copy_sized<128>(row_bytes, num_rows, at, slot_at, out);
    case 256:
      return copy_sized<256>(row_bytes, num_rows, at, slot_at, out);
    default:
      return copy_sized<0>(row_bytes, num_rows, at, slot_at, out);
  }
}

/// A row that isn't dense: odometer over the outer axes, an inner loop over the last one.
void copy_strided_row(const ArrayView& view, const std::byte* row, std::byte* out) {
  const Axis inner = view.axes.back();
  const std::size_t num_outer = view.axes.size() - 1;
  std::vector<std::uint64_t> position(num_outer, 0);
  while (true) {
    const std::byte* run = row;
    for (std::uint64_t k = 0; k < inner.size; ++k, run += inner.stride_bytes, out += view.run_bytes) {
      std::memcpy(out, run, view.run_bytes);
    }
    std::size_t d = num_outer;
    while (d > 0) {
      --d;
      row += view.axes[d].stride_bytes;
      if (++position[d] < view.axes[d].size) {
        break;
      }
      row -= view.axes[d].stride_bytes * static_cast<std::ptrdiff_t>(view.axes[d].size);
      position[d] = 0;
      if (d == 0) {
        return;
      }
    }
    if (num_outer == 0) {
      return;
    }
  }
}

/// Row `row_at(k)` goes to slot `slot_at(k)`.
template <typename RowAt, typename SlotAt>
void copy_rows(const ArrayView& view, std::size_t num_rows, RowAt row_at, SlotAt slot_at, std::byte* out) {
  if (view.row_bytes == 0) {
    return;
  }
  if (!view.axes.empty()) {
    for (std::size_t k = 0; k < num_rows; ++k) {
      copy_strided_row(view, view.row(static_cast<std::uint64_t>(row_at(k))), out + slot_at(k) * view.row_bytes);
    }
    return;
  }
  const auto at = [&](std::size_t k) { return view.row(static_cast<std::uint64_t>(row_at(k))); };
  copy_dense(view.row_bytes, num_rows, at, slot_at, out);
}

}  // namespace

void gather(const ArrayView& view, std::span<const std::int64_t> rows, std::byte* out) {
  std::uint64_t greatest = 0;  // a negative row is a great unsigned one, so one comparison finds both
  for (const std::int64_t row : rows) {
    greatest = std::max(greatest, static_cast<std::uint64_t>(row));
  }
  if (!rows.empty() && greatest >= view.num_rows) {
    const auto bad =
        std::ranges::find_if(rows, [&](std::int64_t row) { return static_cast<std::uint64_t>(row) >= view.num_rows; });
    throw ConfigError(format_message("rows: must be in [0, {}), but the row at position {} is {}", view.num_rows,
                                     bad - rows.begin(), *bad));
  }
  copy_rows(view, rows.size(), [&](std::size_t k) { return rows[k]; }, in_order, out);
}

void gather_into(const ArrayView& view, std::span<const std::uint64_t> rows, std::span<const std::uint32_t> slots,
                 std::byte* out) {
  copy_rows(
      view, rows.size(), [&](std::size_t k) { return rows[k]; }, [&](std::size_t k) { return std::size_t{slots[k]}; },
      out);
}

void gather_mixed(std::span<const RowBase> bases, std::size_t row_bytes, std::span<const std::int32_t> arrays,
                  std::span<const std::uint64_t> rows, std::byte* out) {
  if (row_bytes == 0) {
    return;
  }
  const auto at = [&](std::size_t k) {
    const RowBase& base = bases[static_cast<std::size_t>(arrays[k])];
    return base.data + static_cast<std::ptrdiff_t>(rows[k]) * base.stride_bytes;
  };
  copy_dense(row_bytes, rows.size(), at, in_order, out);
}

void gather_range(const ArrayView& view, std::uint64_t begin, std::uint64_t count, std::byte* out) {
  if (begin > view.num_rows || count > view.num_rows - begin) {
    throw ConfigError(
        format_message("rows: [{}, {} + {}) must lie within the array's {} rows", begin, begin, count, view.num_rows));
  }
  if (count == 0 || view.row_bytes == 0) {
    return;
  }
  if (view.axes.empty() && view.row_stride_bytes == static_cast<std::ptrdiff_t>(view.row_bytes)) {
    std::memcpy(out, view.row(begin), count * view.row_bytes);
    return;
  }
  copy_rows(view, count, [&](std::size_t k) { return begin + k; }, in_order, out);
}

}  // namespace mtf
