#include "mtf/gather/array_view.hpp"

#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

/// Merges dimensions that lie densely inside each other, from the innermost out.
void set_row_layout(ArrayView& view, std::span<const Axis> dimensions, std::size_t item_bytes) {
  view.row_bytes = item_bytes;
  for (const Axis& axis : dimensions) {
    view.row_bytes *= axis.size;
  }
  view.run_bytes = item_bytes;
  view.axes.clear();
  if (view.row_bytes == 0) {
    view.run_bytes = 0;
    return;
  }
  for (std::size_t d = dimensions.size(); d-- > 0;) {
    const Axis& axis = dimensions[d];
    if (axis.size == 1) {
      continue;
    }
    if (view.axes.empty() && axis.stride_bytes == static_cast<std::ptrdiff_t>(view.run_bytes)) {
      view.run_bytes *= axis.size;
    } else if (!view.axes.empty() && axis.stride_bytes == view.axes.front().stride_bytes *
                                                              static_cast<std::ptrdiff_t>(view.axes.front().size)) {
      view.axes.front().size *= axis.size;
    } else {
      view.axes.insert(view.axes.begin(), axis);
    }
  }
}

std::vector<Axis> dimensions_of(std::span<const std::uint64_t> shape, std::span<const std::ptrdiff_t> strides_bytes) {
  if (shape.empty()) {
    throw ConfigError("array: must have at least one dimension (its rows), but it is a scalar");
  }
  if (shape.size() != strides_bytes.size()) {
    throw ConfigError(
        format_message("array: shape has {} dimensions but strides has {}", shape.size(), strides_bytes.size()));
  }
  std::vector<Axis> dimensions(shape.size());
  for (std::size_t d = 0; d < shape.size(); ++d) {
    dimensions[d] = {shape[d], strides_bytes[d]};
  }
  return dimensions;
}

}  // namespace

ArrayView view_of(const std::byte* data, std::span<const std::uint64_t> shape,
                  std::span<const std::ptrdiff_t> strides_bytes, std::size_t item_bytes) {
  const std::vector<Axis> dimensions = dimensions_of(shape, strides_bytes);
  ArrayView view{.data = data, .num_rows = shape[0], .row_stride_bytes = strides_bytes[0], .axes = {}};
  set_row_layout(view, std::span(dimensions).subspan(1), item_bytes);
  return view;
}

std::uint64_t count_windows(std::uint64_t num_rows, std::uint64_t length, std::uint64_t stride) {
  if (length == 0) {
    throw ConfigError("length: must be at least 1 row per window, but is 0");
  }
  if (stride == 0) {
    throw ConfigError("stride: must be at least 1 row between windows, but is 0");
  }
  return num_rows < length ? 0 : (num_rows - length) / stride + 1;
}

ArrayView windows_of(const std::byte* data, std::span<const std::uint64_t> shape,
                     std::span<const std::ptrdiff_t> strides_bytes, std::size_t item_bytes, std::uint64_t length,
                     std::uint64_t stride) {
  std::vector<Axis> dimensions = dimensions_of(shape, strides_bytes);
  ArrayView view{.data = data,
                 .num_rows = count_windows(shape[0], length, stride),
                 .row_stride_bytes = strides_bytes[0] * static_cast<std::ptrdiff_t>(stride),
                 .axes = {}};
  dimensions[0].size = length;
  set_row_layout(view, dimensions, item_bytes);
  return view;
}

}  // namespace mtf
