/// What each bind_<area>.cpp gives to module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace mtf::python {

void bind_blend(pybind11::module_& module);
void bind_config(pybind11::module_& module);
void bind_errors(pybind11::module_& module);
void bind_gather(pybind11::module_& module);
void bind_prefetch(pybind11::module_& module);
void bind_random(pybind11::module_& module);
void bind_row_batches(pybind11::module_& module);
void bind_rows(pybind11::module_& module);
void bind_schedule(pybind11::module_& module);
void bind_tokens(pybind11::module_& module);

}  // namespace mtf::python
