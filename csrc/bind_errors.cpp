// Core errors become the classes of mtf.errors, so that users catch one family, wherever it was raised.
#include "bindings.hpp"
#include "mtf/error.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

void raise(const char* name, const char* what) {
  py::object type = py::module_::import("mtf.errors").attr(name);
  PyErr_SetString(type.ptr(), what);
}

}  // namespace

void bind_errors(py::module_&) {
  // By value, as pybind11 declares it.
  py::register_exception_translator([](std::exception_ptr pointer) {  // NOLINT(performance-unnecessary-value-param)
    try {
      if (pointer) {
        std::rethrow_exception(pointer);
      }
    } catch (const ConfigError& error) {
      raise("ConfigError", error.what());
    } catch (const StateMismatch& error) {
      raise("StateMismatch", error.what());
    } catch (const FileError& error) {
      raise("SourceError", error.what());
    } catch (const Closed& error) {
      raise("Closed", error.what());
    }
  });
}

}  // namespace mtf::python
