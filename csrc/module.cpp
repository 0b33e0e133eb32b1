// Table of contents of mtf._core.
#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native core of mtf: schedules, random numbers, sampling, gathering and prefetching.";
  module.attr("__version__") = MTF_VERSION;
  mtf::python::bind_errors(module);
  mtf::python::bind_prefetch(module);
  mtf::python::bind_gather(module);
  mtf::python::bind_random(module);
  mtf::python::bind_config(module);
  mtf::python::bind_schedule(module);
  mtf::python::bind_rows(module);
  mtf::python::bind_row_batches(module);
  mtf::python::bind_tokens(module);
  mtf::python::bind_blend(module);
}
