// Blends: batches whose samples come from several sources.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/blend/blend_source.hpp"
#include "py_draw.hpp"
#include "py_rows.hpp"
#include "py_source.hpp"
#include "py_tensor.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

using Sizes = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
/// Per source its rows and its key; None for one that was removed.
using Parts = std::vector<std::optional<std::pair<std::shared_ptr<PyRowSource>, std::uint64_t>>>;
/// Per source what its fields are made into.
using Columns = std::vector<std::vector<ColumnSpec>>;

/// Per stack (source, its tensors).
using Stacks = py::typing::List<py::typing::Tuple<py::int_, py::typing::List<py::object>>>;

BatchSizes make_sizes(const Sizes& given) {
  std::vector<BatchSizes::Stage> stages;
  for (const auto& [first_batch, size] : given) {
    stages.push_back({.first_batch = first_batch, .size = size});
  }
  return BatchSizes(std::move(stages));
}

std::vector<BlendPart> make_parts(const Parts& given) {
  std::vector<BlendPart> parts;
  for (const auto& part : given) {
    parts.push_back(part ? BlendPart{part->first->native(), Key{part->second}} : BlendPart{nullptr, Key{}});
  }
  return parts;
}

std::vector<std::vector<Column>> make_columns(const Columns& given) {
  std::vector<std::vector<Column>> columns;
  for (const auto& of_source : given) {
    std::vector<Column>& made = columns.emplace_back();
    for (const ColumnSpec& column : of_source) {
      made.push_back(make_column(column));
    }
  }
  return columns;
}

/// The schedule, by itself: fetching threads use this one, and Python the other.
Schedule independent_copy(PySchedule& schedule) {
  return Schedule::from_state(schedule.core.state(schedule.core.step()));
}

class PyBlendSource final : public PySource {
 public:
  PyBlendSource(std::shared_ptr<BlendSource> source, std::vector<std::vector<Column>> columns, py::object build,
                std::uint64_t batches_per_pass, bool by_source)
      : PySource(source),
        source_(std::move(source)),
        columns_(std::move(columns)),
        build_(std::move(build)),
        batches_per_pass_(batches_per_pass),
        by_source_(by_source) {}

  /// A batch that was fetched before an edit is fetched again.
  [[nodiscard]] py::object to_python(std::unique_ptr<Payload> payload) const override {
    auto* batch = static_cast<BlendBatch*>(payload.get());
    if (batch->version != source_->version()) {
      const std::uint64_t pass = batch->pass, number = batch->batch;
      without_gil([&] { payload = source_->fetch(pass, number); });
      batch = static_cast<BlendBatch*>(payload.get());
    }
    num_taken_ = batch->pass * batches_per_pass_ + batch->batch + 1;
    if (by_source_) {
      return build_(stacks_of(*batch), batch->pass, batch->batch);
    }
    StackedRows& stack = batch->stacks[0];
    if (build_.is_none()) {
      return to_tensor(std::move(stack.buffers[0]), stack.num_rows, columns_of(stack)[0]);
    }
    if (py::isinstance<py::tuple>(build_)) {
      return dict_of(stack);
    }
    return build_(tensors_of(stack), batch->pass, batch->batch);
  }

  [[nodiscard]] Stacks samples(const std::vector<std::uint64_t>& positions) const {
    std::unique_ptr<BlendBatch> batch;
    without_gil([&] { batch = source_->fetch_samples(positions); });
    return stacks_of(*batch);
  }

  void follow(Schedule schedule, std::vector<BlendPart> parts, std::vector<std::vector<Column>> columns) {
    source_->follow(std::move(schedule), std::move(parts));
    columns_ = std::move(columns);
  }

  [[nodiscard]] BlendSource& source() const noexcept { return *source_; }
  [[nodiscard]] std::uint64_t num_taken() const noexcept { return num_taken_; }
  void set_num_taken(std::uint64_t number) noexcept { num_taken_ = number; }

 private:
  [[nodiscard]] const std::vector<Column>& columns_of(const StackedRows& stack) const {
    return columns_[static_cast<std::size_t>(stack.source)];
  }

  /// One per field, and `cu_seqlens` where a field counts positions.
  [[nodiscard]] py::list tensors_of(StackedRows& stack) const {
    static const auto* const lengths =
        new Column{.row_shape = {}, .type = {0, 32, 1}, .import = py::module_::import("torch._C").attr("_from_dlpack")};
    const std::vector<Column>& columns = columns_of(stack);
    py::list tensors(columns.size() + (stack.num_cu_seqlens == 0 ? 0 : 1));
    for (std::size_t k = 0; k < columns.size(); ++k) {
      tensors[k] = to_tensor(std::move(stack.buffers[k]), stack.num_rows, columns[k]);
    }
    if (stack.num_cu_seqlens != 0) {
      tensors[columns.size()] = to_tensor(std::move(stack.cu_seqlens), stack.num_cu_seqlens, *lengths);
    }
    return tensors;
  }

  [[nodiscard]] py::dict dict_of(StackedRows& stack) const {
    const auto names = py::reinterpret_borrow<py::tuple>(build_);
    const py::list tensors = tensors_of(stack);
    py::dict out;
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      out[names[k]] = tensors[k];
    }
    return out;
  }

  [[nodiscard]] Stacks stacks_of(BlendBatch& batch) const {
    Stacks out(batch.stacks.size());
    for (std::size_t s = 0; s < batch.stacks.size(); ++s) {
      out[s] = py::make_tuple(batch.stacks[s].source, tensors_of(batch.stacks[s]));
    }
    return out;
  }

  std::shared_ptr<BlendSource> source_;
  std::vector<std::vector<Column>> columns_;
  py::object build_;
  std::uint64_t batches_per_pass_;
  bool by_source_;
  mutable std::uint64_t num_taken_ = 0;
};

std::shared_ptr<PyBlendSource> make_blend_source(PySchedule& schedule, const Sizes& sizes, const Parts& parts,
                                                 const Columns& columns, py::object build,
                                                 std::uint64_t batches_per_pass, std::uint32_t rank,
                                                 std::uint32_t world_size, bool by_source) {
  auto source = std::make_shared<BlendSource>(
      independent_copy(schedule), make_sizes(sizes), make_parts(parts),
      BlendSource::Spec{
          .batches_per_pass = batches_per_pass, .rank = rank, .world_size = world_size, .by_source = by_source},
      batch_memory());
  return std::make_shared<PyBlendSource>(std::move(source), make_columns(columns), std::move(build), batches_per_pass,
                                         by_source);
}

}  // namespace

void bind_blend(py::module_& module) {
  py::class_<BatchSizes>(module, "BatchSizes", "Sizes of global batches, which may change at given batches.")
      .def(py::init(&make_sizes), py::arg("stages"), "`stages`: (first batch, samples per batch), from batch 0 on.")
      .def("size", &BatchSizes::size, py::arg("batch"), "Samples of a batch.")
      .def("start", &BatchSizes::start, py::arg("batch"), "Samples before a batch.")
      .def("batch_of", &BatchSizes::batch_of, py::arg("position"), "The batch that a sample belongs to.")
      .def_property_readonly("smallest", &BatchSizes::smallest, "The smallest size.")
      .def_property_readonly("largest", &BatchSizes::largest, "The largest size.");
  py::class_<PyBlendSource, PySource, std::shared_ptr<PyBlendSource>>(
      module, "BlendSource", "Batches whose samples come from several sources, gathered without the GIL.")
      .def(py::init(&make_blend_source), py::arg("schedule"), py::arg("sizes"), py::arg("parts"), py::arg("columns"),
           py::arg("build"), py::kw_only(), py::arg("batches_per_pass"), py::arg("rank") = 0, py::arg("world_size") = 1,
           py::arg("by_source") = false,
           "`build`: None, the batch is its only tensor; a tuple of names, it is a dict; else `build(tensors, pass_, "
           "batch)` makes it. With `by_source`: `build(stacks, pass_, batch)`, each stack being (source, its tensors).")
      .def(
          "follow",
          [](PyBlendSource& self, PySchedule& schedule, const Parts& parts, const Columns& columns) {
            self.follow(independent_copy(schedule), make_parts(parts), make_columns(columns));
          },
          py::arg("schedule"), py::arg("parts"), py::arg("columns"),
          "Draws as `schedule` says from now on; batches fetched before are fetched again when they are taken.")
      .def(
          "samples",
          [](const PyBlendSource& self, const std::vector<std::uint64_t>& positions) {
            return self.samples(positions);
          },
          py::arg("positions"), "The stacks of the samples at any positions of the run.")
      .def_property("num_taken", &PyBlendSource::num_taken, &PyBlendSource::set_num_taken,
                    "One more than the number of the batch taken last; 0 before the first.")
      .def_property_readonly("version", [](const PyBlendSource& self) { return self.source().version(); });
}

}  // namespace mtf::python
