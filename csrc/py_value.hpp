/// Plain data of the core as Python objects (None, bool, int, float, str, list, dict) and back.
#pragma once

#include <pybind11/pybind11.h>

#include "mtf/state/value.hpp"

namespace mtf::python {

[[nodiscard]] pybind11::object to_python(const Value& value);

/// Throws StateMismatch for anything that isn't plain data or lies deeper than kMaxDepth; `path` says where.
[[nodiscard]] Value from_python(pybind11::handle object, const std::string& path, int depth = 0);

}  // namespace mtf::python
