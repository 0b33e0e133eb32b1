#include "py_draw.hpp"

#include <new>

namespace py = pybind11;

namespace mtf::python {

namespace {

PyTypeObject* draw_type = nullptr;
PyTypeObject* iterator_type = nullptr;

PyStructSequence_Field draw_fields[] = {
    {"step", "Step in the epoch."},
    {"source", "Index of the source."},
    {"name", "Name of the source."},
    {"pass_", "Which run through the source this is, counted over the whole training."},
    {"batch", "Batch of the source in this pass."},
    {nullptr, nullptr},
};
PyStructSequence_Desc draw_desc = {"mtf.Draw", "One step of a schedule: which batch of which source.", draw_fields, 5};

struct DrawIterator {
  PyObject_HEAD PyObject* owner;  // keeps the schedule alive
  PySchedule* schedule;
  std::int64_t num_epochs;  // still to come; negative: without end
};

void free_iterator(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_XDECREF(reinterpret_cast<DrawIterator*>(self)->owner);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* next_draw(PyObject* self) {
  auto* iterator = reinterpret_cast<DrawIterator*>(self);
  try {
    while (iterator->num_epochs != 0) {
      if (const auto draw = iterator->schedule->core.next()) {
        return iterator->schedule->make_draw(*draw).release().ptr();
      }
      iterator->schedule->core.next_epoch();
      if (iterator->num_epochs > 0) --iterator->num_epochs;
      if (PyErr_CheckSignals() != 0) return nullptr;
    }
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(py::module_::import("mtf.errors").attr("ConfigError").ptr(), error.what());
  }
  return nullptr;
}

PyType_Slot iterator_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(free_iterator)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(next_draw)},
    {0, nullptr},
};
PyType_Spec iterator_spec = {"mtf._core.DrawIterator", sizeof(DrawIterator), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, iterator_slots};

}  // namespace

void PySchedule::refresh_names() {
  names_.clear();
  for (const SourceSpec& source : core.setup().sources) {
    py::str name(source.name);
    names_.push_back(name);
  }
}

py::object PySchedule::make_draw(const Draw& draw) const {
  PyObject* out = PyStructSequence_New(draw_type);
  if (out == nullptr) throw py::error_already_set();
  const py::str& name = names_[static_cast<std::size_t>(draw.source)];
  PyStructSequence_SET_ITEM(out, 0, PyLong_FromUnsignedLongLong(draw.step));
  PyStructSequence_SET_ITEM(out, 1, PyLong_FromLong(draw.source));
  PyStructSequence_SET_ITEM(out, 2, py::reinterpret_borrow<py::object>(name).release().ptr());
  PyStructSequence_SET_ITEM(out, 3, PyLong_FromUnsignedLongLong(draw.pass));
  PyStructSequence_SET_ITEM(out, 4, PyLong_FromUnsignedLongLong(draw.batch));
  return py::reinterpret_steal<py::object>(out);
}

py::object make_draw_iterator(py::object schedule, std::int64_t num_epochs) {
  PyObject* out = iterator_type->tp_alloc(iterator_type, 0);
  if (out == nullptr) throw py::error_already_set();
  auto* iterator = reinterpret_cast<DrawIterator*>(out);
  iterator->schedule = schedule.cast<PySchedule*>();
  iterator->num_epochs = num_epochs;
  iterator->owner = schedule.release().ptr();
  return py::reinterpret_steal<py::object>(out);
}

void bind_draw(py::module_& module) {
  draw_type = PyStructSequence_NewType(&draw_desc);
  iterator_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&iterator_spec));
  if (draw_type == nullptr || iterator_type == nullptr) throw py::error_already_set();
  module.add_object("Draw", py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(draw_type)));
}

}  // namespace mtf::python
