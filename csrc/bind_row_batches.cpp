// Batches of rows of one source, as tensors.
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "mtf/gather/row_batches.hpp"
#include "py_rows.hpp"
#include "py_source.hpp"
#include "py_tensor.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

class PyRowBatches final : public PySource {
 public:
  PyRowBatches(std::shared_ptr<RowBatches> batches, std::vector<Column> columns)
      : PySource(batches),
        batches_(std::move(batches)),
        columns_(std::move(columns)),
        lengths_{.row_shape = {}, .type = {0, 32, 1}, .import = py::module_::import("torch._C").attr("_from_dlpack")} {
    for (const RowField& field : batches_->rows().fields()) {
      names_.append(py::str(field.name));
    }
  }

  /// A dict of the fields' tensors, and of `cu_seqlens` where a field counts positions.
  [[nodiscard]] py::object to_python(std::unique_ptr<Payload> payload) const override {
    auto& batch = static_cast<RowBatch&>(*payload);
    py::dict out;
    for (std::size_t k = 0; k < columns_.size(); ++k) {
      out[names_[k]] = to_tensor(std::move(batch.buffers[k]), batch.num_rows, columns_[k]);
    }
    if (batch.num_cu_seqlens != 0) {
      out["cu_seqlens"] = to_tensor(std::move(batch.cu_seqlens), batch.num_cu_seqlens, lengths_);
    }
    return out;
  }

  [[nodiscard]] std::uint64_t num_batches() const noexcept { return batches_->num_batches(); }

 private:
  std::shared_ptr<RowBatches> batches_;
  std::vector<Column> columns_;
  Column lengths_;
  py::list names_;
};

std::shared_ptr<PyRowBatches> make_row_batches(const PyRowSource& rows, const std::vector<ColumnSpec>& columns,
                                               std::uint64_t batch_size, std::uint64_t key, bool drop_last,
                                               std::uint32_t rank, std::uint32_t world_size,
                                               std::optional<std::array<std::uint64_t, 4>> rest) {
  std::vector<Column> made;
  for (const ColumnSpec& column : columns) {
    made.push_back(make_column(column));
  }
  if (made.size() != rows.native()->fields().size()) {
    throw py::value_error("columns must be one per field");
  }
  RowBatchSpec spec{
      .batch_size = batch_size, .drop_last = drop_last, .rank = rank, .world_size = world_size, .key = Key{key}};
  if (rest) {
    spec.rest = RestOfPass{(*rest)[0], (*rest)[1], (*rest)[2], (*rest)[3]};
  }
  return std::make_shared<PyRowBatches>(std::make_shared<RowBatches>(rows.native(), spec, batch_memory()),
                                        std::move(made));
}

}  // namespace

void bind_row_batches(py::module_& module) {
  py::class_<PyRowBatches, PySource, std::shared_ptr<PyRowBatches>>(
      module, "RowBatches", "Batches of the rows of one source, gathered without the GIL.")
      .def(py::init(&make_row_batches), py::arg("rows"), py::arg("columns"), py::kw_only(), py::arg("batch_size"),
           py::arg("key") = 0, py::arg("drop_last") = false, py::arg("rank") = 0, py::arg("world_size") = 1,
           py::arg("rest") = py::none(),
           "A batch is a dict of the fields' tensors, and of `cu_seqlens` where a field counts positions. `rest`: "
           "(pass, num_samples, first_sample, first_batch) of a pass that began with another batch size.")
      .def_property_readonly("num_batches", &PyRowBatches::num_batches);
}

}  // namespace mtf::python
