// Array sources: numpy arrays in, DLPack capsules out. The arrays stay alive as long as the source.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/gather/array_source.hpp"
#include "mtf/gather/buffer_pool.hpp"
#include "py_source.hpp"
#include "py_tensor.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

class KeepingArraySource final : public ArraySource {
 public:
  KeepingArraySource(OwnedObject arrays, std::vector<ArrayView> views, SamplerSpec spec)
      : ArraySource(std::move(views), std::move(spec), batch_memory()), arrays_(std::move(arrays)) {}

 private:
  OwnedObject arrays_;
};

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

std::shared_ptr<PyArraySource> make_array_source(const std::vector<py::array>& arrays,
                                                 const std::vector<std::pair<std::uint8_t, std::uint8_t>>& dtypes,
                                                 const std::vector<Importer>& importers, py::object build,
                                                 std::uint64_t batch_size, std::uint64_t key, bool shuffle,
                                                 bool drop_last, std::uint32_t rank, std::uint32_t world_size,
                                                 std::optional<std::pair<std::uint64_t, std::uint64_t>> windows,
                                                 std::optional<std::array<std::uint64_t, 4>> rest) {
  if (dtypes.size() != arrays.size() || importers.size() != arrays.size()) {
    throw py::value_error("arrays, dtypes and importers must be equally long");
  }
  std::optional<ArrayWindow> window;
  if (windows) {
    window = ArrayWindow{windows->first, windows->second};
  }
  std::vector<ArrayView> views;
  std::vector<Column> columns;
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    const py::array& array = arrays[k];
    views.push_back(array_view(array, window));
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
  if (rest) {
    spec.rest = RestOfPass{(*rest)[0], (*rest)[1], (*rest)[2], (*rest)[3]};
  }
  auto source = std::make_shared<KeepingArraySource>(OwnedObject(py::cast(arrays)), std::move(views), std::move(spec));
  return std::make_shared<PyArraySource>(std::move(source), std::move(columns), std::move(build));
}

py::typing::Dict<py::str, py::int_> batch_memory_stats() {
  const BufferPool::Stats stats = batch_memory()->stats();
  py::typing::Dict<py::str, py::int_> result;
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
           py::arg("windows") = py::none(), py::arg("rest") = py::none(),
           "`build(tensors, pass_, batch)` makes the batch from its tensors; None: the batch is its only tensor. "
           "`rest`: (pass, num_samples, first_sample, first_batch) of a pass that began otherwise.")
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
