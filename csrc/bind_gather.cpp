// Array sources: numpy arrays in, DLPack capsules out. The arrays stay alive as long as the source.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "dlpack.hpp"
#include "gil.hpp"
#include "mtf/gather/array_source.hpp"
#include "mtf/gather/buffer_pool.hpp"
#include "py_source.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

/// Shared by all sources, so that what one has let go another can use.
const std::shared_ptr<BufferPool>& batch_memory() {
  static const auto* pool = new std::shared_ptr<BufferPool>(BufferPool::create());
  return *pool;
}

class KeepingArraySource final : public ArraySource {
 public:
  KeepingArraySource(OwnedObject arrays, std::vector<ArrayView> views, SamplerSpec spec)
      : ArraySource(std::move(views), std::move(spec), batch_memory()), arrays_(std::move(arrays)) {}

 private:
  OwnedObject arrays_;
};

/// A tensor that owns its buffer: releasing it gives the memory back to the pool, with or without the GIL.
struct OwningTensor {
  dlpack::ManagedTensor managed{};
  Buffer buffer;
  std::vector<std::int64_t> dimensions;  // shape, then strides in items
};

struct Column {
  std::vector<std::int64_t> row_shape;
  dlpack::DataType type{};
  py::object import;  // capsule -> tensor
};

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
  // Whoever takes the capsule over renames it; one that still has its first name owns the tensor.
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

class PyArraySource final : public PySource {
 public:
  PyArraySource(std::shared_ptr<ArraySource> source, std::vector<Column> columns, py::object build)
      : PySource(source), source_(std::move(source)), columns_(std::move(columns)), build_(std::move(build)) {}

  [[nodiscard]] py::object to_python(std::unique_ptr<Payload> payload) const override {
    auto& batch = static_cast<ArrayBatch&>(*payload);
    if (build_.is_none()) {
      return to_tensor(std::move(batch.buffers[0]), batch.num_rows, columns_[0]);
    }
    py::list tensors(columns_.size());
    for (std::size_t k = 0; k < columns_.size(); ++k) {
      tensors[k] = to_tensor(std::move(batch.buffers[k]), batch.num_rows, columns_[k]);
    }
    return build_(std::move(tensors), batch.pass, batch.batch);
  }

  [[nodiscard]] const ArraySource& source() const noexcept { return *source_; }

 private:
  std::shared_ptr<ArraySource> source_;
  std::vector<Column> columns_;
  py::object build_;
};

struct Window {
  std::uint64_t length;
  std::uint64_t stride;
};

ArrayView view(const py::array& array, const std::optional<Window>& window) {
  const std::vector<std::uint64_t> shape(array.shape(), array.shape() + array.ndim());
  const std::vector<std::ptrdiff_t> strides(array.strides(), array.strides() + array.ndim());
  const auto* data = static_cast<const std::byte*>(array.data());
  const auto item_bytes = static_cast<std::size_t>(array.itemsize());
  return window ? windows_of(data, shape, strides, item_bytes, window->length, window->stride)
                : view_of(data, shape, strides, item_bytes);
}

std::shared_ptr<PyArraySource> make_array_source(const std::vector<py::array>& arrays,
                                                 const std::vector<std::pair<std::uint8_t, std::uint8_t>>& dtypes,
                                                 const std::vector<py::object>& importers, py::object build,
                                                 std::uint64_t batch_size, std::uint64_t key, bool shuffle,
                                                 bool drop_last, std::uint32_t rank, std::uint32_t world_size,
                                                 std::optional<std::pair<std::uint64_t, std::uint64_t>> windows) {
  if (dtypes.size() != arrays.size() || importers.size() != arrays.size()) {
    throw py::value_error("arrays, dtypes and importers must be equally long");
  }
  std::optional<Window> window;
  if (windows) {
    window = Window{windows->first, windows->second};
  }
  std::vector<ArrayView> views;
  std::vector<Column> columns;
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    const py::array& array = arrays[k];
    views.push_back(view(array, window));
    Column column{.row_shape = {}, .type = {dtypes[k].first, dtypes[k].second, 1}, .import = importers[k]};
    if (window) {
      column.row_shape.push_back(static_cast<std::int64_t>(window->length));
    }
    for (py::ssize_t d = 1; d < array.ndim(); ++d) {
      column.row_shape.push_back(array.shape(d));
    }
    columns.push_back(std::move(column));
  }
  SamplerSpec spec{.num_samples = views.empty() ? 0 : views[0].num_rows,
                   .batch_size = batch_size,
                   .shuffle = shuffle,
                   .drop_last = drop_last,
                   .rank = rank,
                   .world_size = world_size,
                   .key = Key{key}};
  auto source = std::make_shared<KeepingArraySource>(OwnedObject(py::cast(arrays)), std::move(views), std::move(spec));
  return std::make_shared<PyArraySource>(std::move(source), std::move(columns), std::move(build));
}

py::dict batch_memory_stats() {
  const BufferPool::Stats stats = batch_memory()->stats();
  py::dict result;
  result["num_allocated"] = stats.num_allocated;
  result["num_reused"] = stats.num_reused;
  result["idle_bytes"] = stats.idle_bytes;
  result["live_bytes"] = stats.live_bytes;
  return result;
}

}  // namespace

void bind_gather(py::module_& module) {
  py::class_<PyArraySource, PySource, std::shared_ptr<PyArraySource>>(
      module, "ArraySource", "Batches of rows of arrays, gathered without the GIL.")
      .def(py::init(&make_array_source), py::arg("arrays"), py::arg("dtypes"), py::arg("importers"), py::arg("build"),
           py::kw_only(), py::arg("batch_size"), py::arg("key") = 0, py::arg("shuffle") = false,
           py::arg("drop_last") = false, py::arg("rank") = 0, py::arg("world_size") = 1,
           py::arg("windows") = py::none(),
           "`build(tensors, pass_, batch)` makes the batch from its tensors; None: the batch is its only tensor.")
      .def_property_readonly("num_batches", [](const PyArraySource& self) { return self.source().num_batches(); })
      .def(
          "share_is_empty",
          [](const PyArraySource& self, std::uint64_t batch) { return self.source().share_is_empty(batch); },
          py::arg("batch"), "Whether this rank has no row of its own in the batch.");
  module.def("count_windows", &count_windows, py::arg("num_rows"), py::arg("length"), py::arg("stride"),
             "How many windows of `length` rows, `stride` apart, fit into `num_rows` rows.");
  module.def("batch_memory_stats", &batch_memory_stats, "What the memory pool of all array sources holds.");
}

}  // namespace mtf::python
