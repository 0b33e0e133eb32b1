#include "py_tensor.hpp"

#include <utility>

namespace py = pybind11;

namespace mtf::python {

namespace {

/// A tensor that owns its buffer: releasing it gives the memory back to the pool, with or without the GIL.
struct OwningTensor {
  dlpack::ManagedTensor managed{};
  Buffer buffer;
  std::vector<std::int64_t> dimensions;  // shape, then strides in items
};

}  // namespace

const std::shared_ptr<BufferPool>& batch_memory() {
  static const auto* pool = new std::shared_ptr<BufferPool>(BufferPool::create());
  return *pool;
}

Column make_column(const ColumnSpec& spec) {
  const auto& [shape, code, bits, importer] = spec;
  return {.row_shape = shape, .type = {code, bits, 1}, .import = importer};
}

py::object to_tensor(Buffer buffer, std::uint64_t num_rows, const Column& column) {
  auto owner = std::make_unique<OwningTensor>();
  const std::size_t num_dimensions = column.row_shape.size() + 1;
  owner->buffer = std::move(buffer);
  owner->dimensions.resize(2 * num_dimensions);
  std::int64_t* const shape = owner->dimensions.data();
  std::int64_t* const strides = shape + num_dimensions;
  std::int64_t stride = 1;
  for (std::size_t d = num_dimensions; d-- > 0;) {
    shape[d] = d == 0 ? static_cast<std::int64_t>(num_rows) : column.row_shape[d - 1];
    strides[d] = stride;
    stride *= shape[d];
  }
  owner->managed = {.tensor = {.data = owner->buffer.data(),
                               .device = dlpack::kCpu,
                               .num_dimensions = static_cast<std::int32_t>(num_dimensions),
                               .type = column.type,
                               .shape = shape,
                               .strides = strides,
                               .byte_offset = 0},
                    .context = owner.get(),
                    .release = [](dlpack::ManagedTensor* self) { delete static_cast<OwningTensor*>(self->context); }};
  // A consumer that takes the capsule over renames it; one that still has its first name owns the tensor.
  py::object capsule =
      py::reinterpret_steal<py::object>(PyCapsule_New(&owner->managed, dlpack::kCapsuleName, [](PyObject* self) {
        if (PyCapsule_IsValid(self, dlpack::kCapsuleName) == 0) {
          return;
        }
        auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(self, dlpack::kCapsuleName));
        managed->release(managed);
      }));
  if (!capsule) {
    throw py::error_already_set();
  }
  static_cast<void>(owner.release());
  return column.import(std::move(capsule));
}

ArrayView array_view(const py::array& array, const std::optional<ArrayWindow>& window) {
  const std::vector<std::uint64_t> shape(array.shape(), array.shape() + array.ndim());
  const std::vector<std::ptrdiff_t> strides(array.strides(), array.strides() + array.ndim());
  const auto* data = static_cast<const std::byte*>(array.data());
  const auto item_bytes = static_cast<std::size_t>(array.itemsize());
  return window ? windows_of(data, shape, strides, item_bytes, window->length, window->stride)
                : view_of(data, shape, strides, item_bytes);
}

}  // namespace mtf::python
