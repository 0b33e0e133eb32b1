#include "py_draw.hpp"

#include <structmember.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

PyTypeObject* draw_type = nullptr;
PyTypeObject* iterator_type = nullptr;

// A tuple with named items. A struct sequence would look its own size up in its class at every birth and death, which
// costs more than the draw.
constexpr std::array kDrawFields{"step", "source", "name", "pass_", "batch"};
constexpr Py_ssize_t kNumDrawFields = kDrawFields.size();

constexpr Py_ssize_t offset_of_item(Py_ssize_t item) noexcept {
  return static_cast<Py_ssize_t>(offsetof(PyTupleObject, ob_item)) + item * static_cast<Py_ssize_t>(sizeof(PyObject*));
}

constinit PyMemberDef draw_members[] = {
    {kDrawFields[0], T_OBJECT_EX, offset_of_item(0), READONLY, "Step in the epoch."},
    {kDrawFields[1], T_OBJECT_EX, offset_of_item(1), READONLY, "Index of the source."},
    {kDrawFields[2], T_OBJECT_EX, offset_of_item(2), READONLY, "Name of the source."},
    {kDrawFields[3], T_OBJECT_EX, offset_of_item(3), READONLY,
     "Which run through the source this is, counted over the whole training."},
    {kDrawFields[4], T_OBJECT_EX, offset_of_item(4), READONLY, "Batch of the source in this pass."},
    {nullptr, 0, 0, 0, nullptr},
};

PyObject* new_draw(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyObject* draw = PyTuple_Type.tp_new(type, args, kwargs);
  if (draw != nullptr && PyTuple_GET_SIZE(draw) != kNumDrawFields) {
    PyErr_Format(PyExc_TypeError, "Draw() takes a sequence of %zd items, got %zd", kNumDrawFields,
                 PyTuple_GET_SIZE(draw));
    Py_CLEAR(draw);
  }
  return draw;
}

PyObject* draw_repr(PyObject* self) {
  return PyUnicode_FromFormat("mtf.Draw(step=%R, source=%R, name=%R, pass_=%R, batch=%R)", PyTuple_GET_ITEM(self, 0),
                              PyTuple_GET_ITEM(self, 1), PyTuple_GET_ITEM(self, 2), PyTuple_GET_ITEM(self, 3),
                              PyTuple_GET_ITEM(self, 4));
}

PyObject* reduce_draw(PyObject* self, PyObject*) {
  PyObject* items = PyTuple_GetSlice(self, 0, kNumDrawFields);
  return items == nullptr ? nullptr : Py_BuildValue("(O(N))", Py_TYPE(self), items);
}

PyMethodDef draw_methods[] = {
    {"__reduce__", reduce_draw, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot draw_slots[] = {
    {Py_tp_doc, const_cast<char*>("One step of a schedule: which batch of which source.")},
    {Py_tp_new, reinterpret_cast<void*>(new_draw)},
    {Py_tp_repr, reinterpret_cast<void*>(draw_repr)},
    {Py_tp_members, draw_members},
    {Py_tp_methods, draw_methods},
    {0, nullptr},
};
PyType_Spec draw_spec = {"mtf.Draw", 0, 0, Py_TPFLAGS_DEFAULT, draw_slots};

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

/// Sets the Python error that stands for the C++ exception in flight.
void set_error() noexcept {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const ConfigError& error) {
    PyErr_SetString(py::module_::import("mtf.errors").attr("ConfigError").ptr(), error.what());
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

PyObject* next_draw(PyObject* self) {
  auto* iterator = reinterpret_cast<DrawIterator*>(self);
  try {
    while (iterator->num_epochs != 0) {
      if (const auto draw = iterator->schedule->core.next()) {
        return iterator->schedule->make_draw(*draw).release().ptr();
      }
      iterator->schedule->core.next_epoch();
      if (iterator->num_epochs > 0) {
        --iterator->num_epochs;
      }
      if (PyErr_CheckSignals() != 0) {
        return nullptr;
      }
    }
  } catch (...) {
    set_error();
  }
  return nullptr;
}

std::uint64_t to_count(PyObject* number, const char* name) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(number));
  const unsigned long long count = index ? PyLong_AsUnsignedLongLong(index.ptr()) : 0;
  if (PyErr_Occurred() != nullptr) {
    py::raise_from(PyExc_TypeError, (std::string("at(): ") + name + " must be an integer in [0, 2**64)").c_str());
    throw py::error_already_set();
  }
  return count;
}

/// The native object of a Schedule, which a subclass may not have initialised.
PySchedule& schedule_of(PyObject* self) {
  auto* const instance = reinterpret_cast<py::detail::instance*>(self);
  if (!instance->simple_layout) {
    return py::cast<PySchedule&>(py::handle(self));  // several native bases
  }
  const py::detail::value_and_holder held = instance->get_value_and_holder();
  if (!held.holder_constructed()) {
    throw py::type_error("Schedule.__init__() must be called first");
  }
  return *held.value_ptr<PySchedule>();
}

/// Schedule.at(step, epoch=None), called in half the time that a generated binding takes.
PyObject* draw_at(PyObject* self, PyObject* const* args, Py_ssize_t num_args, PyObject* keywords) {
  try {
    const Py_ssize_t num_keywords = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    std::array<PyObject*, 2> given{};
    if (num_args > 2) {
      throw py::type_error(format_message("at() takes step and epoch, got {} arguments", num_args));
    }
    std::copy_n(args, num_args, given.begin());
    for (Py_ssize_t i = 0; i < num_keywords; ++i) {
      PyObject* const keyword = PyTuple_GET_ITEM(keywords, i);
      const bool is_step = PyUnicode_CompareWithASCIIString(keyword, "step") == 0;
      PyObject*& value = given[is_step ? 0 : 1];
      if ((!is_step && PyUnicode_CompareWithASCIIString(keyword, "epoch") != 0) || value != nullptr) {
        throw py::type_error(
            format_message("at() takes step and epoch once each, got {}", py::repr(keyword).cast<std::string>()));
      }
      value = args[num_args + i];
    }
    if (given[0] == nullptr) {
      throw py::type_error("at() needs step");
    }
    PySchedule& schedule = schedule_of(self);
    const std::uint64_t step = to_count(given[0], "step");
    const bool is_current = given[1] == nullptr || given[1] == Py_None;
    const EpochIndex epoch = is_current ? schedule.core.epoch() : schedule.reach(to_count(given[1], "epoch"));
    return schedule.make_draw(schedule.core.at(step, epoch)).release().ptr();
  } catch (...) {
    set_error();
    return nullptr;
  }
}

PyMethodDef draw_at_method = {"at", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(draw_at)),
                              METH_FASTCALL | METH_KEYWORDS,
                              "at($self, /, step, epoch=None)\n--\n\nat(self: mtf._core.Schedule, step: int, epoch: "
                              "int | None = None) -> mtf._core.Draw\n\nThe draw at a step: as quick at any "
                              "step.\n\nRaises:\n    ConfigError: the epoch has fewer steps."};

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
  for (const SourceSpec& source : core.spec().sources) {
    py::str name(source.name);
    names_.push_back(name);
  }
}

EpochIndex PySchedule::reach(std::uint64_t epoch) {
  constexpr std::uint64_t kEpochsPerLook = 64;
  while (!core.approach({epoch}, kEpochsPerLook)) {
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
  }
  return {epoch};
}

py::object PySchedule::make_draw(const Draw& draw) const {
  PyObject* out = draw_type->tp_alloc(draw_type, kNumDrawFields);
  if (out == nullptr) {
    throw py::error_already_set();
  }
  const py::str& name = names_[static_cast<std::size_t>(draw.source)];
  PyTuple_SET_ITEM(out, 0, PyLong_FromUnsignedLongLong(draw.step));
  PyTuple_SET_ITEM(out, 1, PyLong_FromLong(draw.source));
  PyTuple_SET_ITEM(out, 2, py::reinterpret_borrow<py::object>(name).release().ptr());
  PyTuple_SET_ITEM(out, 3, PyLong_FromUnsignedLongLong(draw.pass));
  PyTuple_SET_ITEM(out, 4, PyLong_FromUnsignedLongLong(draw.batch));
  return py::reinterpret_steal<py::object>(out);
}

py::typing::Iterator<PyDraw> make_draw_iterator(py::object schedule, std::int64_t num_epochs) {
  PyObject* out = iterator_type->tp_alloc(iterator_type, 0);
  if (out == nullptr) {
    throw py::error_already_set();
  }
  auto* iterator = reinterpret_cast<DrawIterator*>(out);
  iterator->schedule = schedule.cast<PySchedule*>();
  iterator->num_epochs = num_epochs;
  iterator->owner = schedule.release().ptr();
  return py::reinterpret_steal<py::typing::Iterator<PyDraw>>(out);
}

void bind_random_access(py::handle schedule_type) {
  PyObject* method = PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(schedule_type.ptr()), &draw_at_method);
  if (method == nullptr) {
    throw py::error_already_set();
  }
  schedule_type.attr("at") = py::reinterpret_steal<py::object>(method);
}

void bind_draw(py::module_& module) {
  py::tuple fields(kDrawFields.size());
  for (std::size_t i = 0; i < kDrawFields.size(); ++i) {
    fields[i] = py::str(kDrawFields[i]);
  }
  const py::tuple bases = py::make_tuple(py::handle(reinterpret_cast<PyObject*>(&PyTuple_Type)));
  draw_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpecWithBases(&draw_spec, bases.ptr()));
  iterator_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&iterator_spec));
  if (draw_type == nullptr || iterator_type == nullptr) {
    throw py::error_already_set();
  }
  const auto type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(draw_type));
  type.attr("__match_args__") = fields;
  module.add_object("Draw", type);
}

}  // namespace mtf::python
