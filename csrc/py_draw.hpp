/// `Draw`, a named tuple made without any Python code, and the iterator that makes them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <vector>

#include "mtf/schedule/schedule.hpp"

namespace mtf::python {

/// A Draw, for signatures.
class PyDraw : public pybind11::tuple {
 public:
  using pybind11::tuple::tuple;
};

/// A schedule with its names as Python strings, so that a draw costs no new string.
class PySchedule {
 public:
  explicit PySchedule(Schedule schedule) : core(std::move(schedule)) { refresh_names(); }

  void refresh_names();
  [[nodiscard]] pybind11::object make_draw(const Draw& draw) const;
  /// `epoch`, with all that it follows from computed. A far one takes a while: signals are handled meanwhile.
  EpochIndex reach(std::uint64_t epoch);

  Schedule core;

 private:
  std::vector<pybind11::str> names_;
};

void bind_draw(pybind11::module_& module);

/// Gives the class of PySchedule its method `at`.
void bind_random_access(pybind11::handle schedule_type);

/// Iterates from the cursor, which it moves, to the end of `num_epochs` epochs (negative: without end).
[[nodiscard]] pybind11::typing::Iterator<PyDraw> make_draw_iterator(pybind11::object schedule, std::int64_t num_epochs);

}  // namespace mtf::python

template <>
struct pybind11::detail::handle_type_name<mtf::python::PyDraw> {
  static constexpr auto name = const_name("mtf._core.Draw");
};
