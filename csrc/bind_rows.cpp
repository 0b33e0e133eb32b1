// Rows that a blend gathers from. The arrays stay alive as long as the rows.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/gather/array_rows.hpp"
#include "mtf/gather/grown_rows.hpp"
#include "py_rows.hpp"
#include "py_tensor.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

class KeepingArrayRows final : public ArrayRows {
 public:
  KeepingArrayRows(OwnedObject arrays, std::vector<ArrayView> views, std::vector<RowField> fields, bool shuffle)
      : ArrayRows(std::move(views), std::move(fields), shuffle), arrays_(std::move(arrays)) {}

 private:
  OwnedObject arrays_;
};

class PyArrayRows final : public PyRowSource {
 public:
  using PyRowSource::PyRowSource;
};

class PyGrownRows final : public PyRowSource {
 public:
  using PyRowSource::PyRowSource;
};

std::shared_ptr<PyGrownRows> make_grown_rows(const PyRowSource& now, const PyRowSource& then, std::uint64_t pass) {
  return std::make_shared<PyGrownRows>(std::make_shared<GrownRows>(now.native(), then.native(), pass));
}

std::shared_ptr<PyArrayRows> make_array_rows(const std::vector<py::array>& arrays,
                                             const std::vector<std::string>& names,
                                             const std::vector<std::string>& dtypes, bool shuffle,
                                             std::optional<std::pair<std::uint64_t, std::uint64_t>> windows) {
  if (names.size() != arrays.size() || dtypes.size() != arrays.size()) {
    throw py::value_error("arrays, names and dtypes must be equally long");
  }
  std::optional<ArrayWindow> window;
  if (windows) {
    window = ArrayWindow{windows->first, windows->second};
  }
  std::vector<ArrayView> views;
  std::vector<RowField> fields;
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    views.push_back(array_view(arrays[k], window));
    RowField field{.name = names[k],
                   .dtype = dtypes[k],
                   .item_bytes = static_cast<std::size_t>(arrays[k].itemsize()),
                   .shape = {},
                   .counts_positions = false};
    if (window) {
      field.shape.push_back(window->length);
    }
    for (py::ssize_t d = 1; d < arrays[k].ndim(); ++d) {
      field.shape.push_back(static_cast<std::uint64_t>(arrays[k].shape(d)));
    }
    fields.push_back(std::move(field));
  }
  return std::make_shared<PyArrayRows>(
      std::make_shared<KeepingArrayRows>(OwnedObject(py::cast(arrays)), std::move(views), std::move(fields), shuffle));
}

using FieldTuple = py::typing::Tuple<py::str, py::str, py::typing::Tuple<py::int_, py::ellipsis>, py::bool_>;

py::typing::List<FieldTuple> fields_of(const PyRowSource& self) {
  py::typing::List<FieldTuple> out;
  for (const RowField& field : self.native()->fields()) {
    out.append(py::make_tuple(field.name, field.dtype, py::tuple(py::cast(field.shape)), field.counts_positions));
  }
  return out;
}

py::array_t<std::int64_t> find_rows(
    const PyRowSource& self, std::uint64_t key, std::uint64_t pass,
    const py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>& places) {
  const auto size = static_cast<std::size_t>(places.size());
  py::array_t<std::int64_t> rows(places.size());
  self.native()->find_rows(Key{key}, pass, {places.data(), size},
                           {reinterpret_cast<std::uint64_t*>(rows.mutable_data()), size});
  return rows;
}

py::array_t<std::int64_t> places_of(const PyRowSource& self, std::uint64_t key,
                                    const py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>& passes,
                                    std::uint64_t row) {
  py::array_t<std::int64_t> places(passes.size());
  for (py::ssize_t k = 0; k < passes.size(); ++k) {
    places.mutable_data()[k] = static_cast<std::int64_t>(self.native()->place_of(Key{key}, passes.data()[k], row));
  }
  return places;
}

/// Rows in a stack of their own, one tensor per field.
py::typing::List<py::object> read(const PyRowSource& self, std::uint64_t key, std::uint64_t pass,
                                  const py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>& places,
                                  const std::vector<ColumnSpec>& columns) {
  const std::span<const RowField> fields = self.native()->fields();
  if (columns.size() != fields.size()) {
    throw py::value_error("columns must be one per field");
  }
  const auto num_rows = static_cast<std::size_t>(places.size());
  std::vector<std::uint32_t> slots(num_rows);
  std::iota(slots.begin(), slots.end(), 0U);
  std::vector<Buffer> buffers;
  std::vector<std::byte*> starts;
  for (const RowField& field : fields) {
    buffers.push_back(batch_memory()->acquire(num_rows * field.row_bytes()));
    starts.push_back(buffers.back().data());
  }
  self.native()->write(Key{key}, pass, {places.data(), num_rows}, slots, starts);
  py::typing::List<py::object> out(fields.size());
  for (std::size_t k = 0; k < fields.size(); ++k) {
    out[k] = to_tensor(std::move(buffers[k]), num_rows, make_column(columns[k]));
  }
  return out;
}

}  // namespace

void bind_rows(py::module_& module) {
  py::class_<PyRowSource, std::shared_ptr<PyRowSource>>(module, "RowSource",
                                                        "Rows that can be written anywhere in a batch.")
      .def_property_readonly(
          "num_rows", [](const PyRowSource& self) { return self.native()->num_rows(); }, "Rows of one pass.")
      .def_property_readonly("fields", &fields_of,
                             "Per array of a batch `(name, dtype, shape of one row, whether it counts positions)`.")
      .def("find_rows", &find_rows, py::arg("key"), py::arg("pass_"), py::arg("places"),
           "The numbers of the rows at `places` of a pass: int64, as long as `places`. Reads no data.")
      .def("places_of", &places_of, py::arg("key"), py::arg("passes"), py::arg("row"),
           "The place of each of `passes` at which a row is given: int64, as long as `passes`.")
      .def("read", &read, py::arg("key"), py::arg("pass_"), py::arg("places"), py::arg("columns"),
           "The rows at `places` of a pass as tensors, one per field: a row's shape, DLPack's code and bits, and what "
           "makes a tensor of a capsule are given per field.");
  py::class_<PyArrayRows, PyRowSource, std::shared_ptr<PyArrayRows>>(module, "ArrayRows", "Rows or windows of arrays.")
      .def(py::init(&make_array_rows), py::arg("arrays"), py::arg("names"), py::arg("dtypes"), py::kw_only(),
           py::arg("shuffle") = true, py::arg("windows") = py::none(),
           "`dtypes` are torch's names; `windows` is (length, stride).");
  py::class_<PyGrownRows, PyRowSource, std::shared_ptr<PyGrownRows>>(
      module, "GrownRows", "Rows of a source that has grown while a pass of it was under way.")
      .def(py::init(&make_grown_rows), py::arg("now"), py::arg("then"), py::arg("pass_"),
           "`then`: the rows that there were when pass `pass_` began.");
}

}  // namespace mtf::python
