#include "py_value.hpp"

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace py = pybind11;

namespace mtf::python {

py::object to_python(const Value& value) {
  struct Visitor {
    py::object operator()(std::monostate) const { return py::none(); }
    py::object operator()(bool v) const { return py::bool_(v); }
    py::object operator()(std::uint64_t v) const { return py::int_(v); }
    py::object operator()(double v) const { return py::float_(v); }
    py::object operator()(const std::string& v) const { return py::str(v); }
    py::object operator()(const ValueList& v) const {
      py::list out(v.size());
      for (std::size_t i = 0; i < v.size(); ++i) {
        out[i] = to_python(v[i]);
      }
      return out;
    }
    py::object operator()(const ValueMap& v) const {
      py::dict out;
      for (const auto& [name, item] : v) {
        out[py::str(name)] = to_python(item);
      }
      return out;
    }
  };
  return std::visit(Visitor{}, value.data());
}

Value from_python(py::handle object, const std::string& path, int depth) {
  if (depth > kMaxDepth) {
    throw StateMismatch(format_message("{} lies deeper than {} levels", path, kMaxDepth));
  }
  if (object.is_none()) {
    return {};
  }
  if (py::isinstance<py::bool_>(object)) {
    return object.cast<bool>();
  }
  if (py::isinstance<py::int_>(object)) {
    const std::uint64_t value = PyLong_AsUnsignedLongLong(object.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw StateMismatch(
          format_message("{} must be an integer in [0, 2^64), got {}", path, py::str(object).cast<std::string>()));
    }
    return value;
  }
  if (py::isinstance<py::float_>(object)) {
    return object.cast<double>();
  }
  if (py::isinstance<py::str>(object)) {
    return object.cast<std::string>();
  }
  if (py::isinstance<py::dict>(object)) {
    ValueMap out;
    for (const auto& [name, item] : py::reinterpret_borrow<py::dict>(object)) {
      if (!py::isinstance<py::str>(name)) {
        throw StateMismatch(format_message("{} must have strings as keys", path));
      }
      auto key = name.cast<std::string>();
      Value inner = from_python(item, path + "." + key, depth + 1);
      out.emplace_back(std::move(key), std::move(inner));
    }
    return out;
  }
  if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) {
    ValueList out;
    for (const py::handle item : object) {
      out.push_back(from_python(item, path + "[" + std::to_string(out.size()) + "]", depth + 1));
    }
    return out;
  }
  throw StateMismatch(
      format_message("{} must be plain data, got {}", path, py::str(py::type::of(object)).cast<std::string>()));
}

}  // namespace mtf::python
