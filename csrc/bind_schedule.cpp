// Schedules: names, casts and the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/schedule/epoch_report.hpp"
#include "mtf/schedule/schedule.hpp"
#include "mtf/state/codec.hpp"
#include "py_draw.hpp"
#include "py_value.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

using Lengths = std::vector<std::optional<std::uint64_t>>;
/// Per source its largest number of passes, the index of its heir, and what a batch counts.
using Caps = std::vector<std::tuple<std::optional<std::uint64_t>, std::optional<std::int32_t>, double>>;

std::unique_ptr<PySchedule> make_schedule(const MixtureConfig& config, const std::vector<std::string>& names,
                                          const Lengths& lengths, std::uint64_t seed, const Caps& caps,
                                          bool stops_when_spent) {
  MixtureSpec spec{.config = config, .sources = {}, .stops_when_spent = stops_when_spent};
  for (std::size_t i = 0; i < names.size(); ++i) {
    SourceSpec& source = spec.sources.emplace_back(SourceSpec{.name = names[i], .length = lengths.at(i)});
    if (!caps.empty()) {
      std::tie(source.max_passes, source.heir, source.per_draw) = caps.at(i);
    }
  }
  return std::make_unique<PySchedule>(Schedule(std::move(spec), seed));
}

EpochIndex epoch_or_current(PySchedule& self, std::optional<std::uint64_t> epoch) {
  return epoch ? self.reach(*epoch) : self.core.epoch();
}

py::array_t<std::int32_t> sources(PySchedule& self, std::optional<std::uint64_t> epoch, std::uint64_t start,
                                  std::optional<std::uint64_t> stop) {
  const EpochIndex index = epoch_or_current(self, epoch);
  const std::optional<std::uint64_t> end = stop ? stop : self.core.num_steps(index);
  if (!end) {
    throw ConfigError(format_message("stop must be given: how many steps epoch {} has is not known yet", index.value));
  }
  const auto ranges = self.core.ranges(index, std::min(start, *end), *end);
  std::uint64_t num_steps = 0;
  for (const auto& range : ranges) {
    num_steps += range.end - range.begin;
  }
  py::array_t<std::int32_t> out(static_cast<py::ssize_t>(num_steps));
  const std::span<std::int32_t> span(out.mutable_data(), num_steps);
  OwnedObject owned(std::move(out));
  without_gil([&] { Schedule::fill(ranges, span); });
  return py::reinterpret_steal<py::array_t<std::int32_t>>(owned.take().release());
}

py::array_t<std::int64_t> as_array(const std::vector<std::uint64_t>& values) {
  py::array_t<std::int64_t> out(static_cast<py::ssize_t>(values.size()));
  std::ranges::copy(values, out.mutable_data());
  return out;
}

/// The next draws from the cursor, which stays; fewer where the epoch ends.
struct Draws {
  Draws(PySchedule& self, std::size_t most) : sources(most), passes(most), batches(most) {
    num = self.core.draws(sources, passes, batches);
  }
  std::vector<std::int32_t> sources;
  std::vector<std::int64_t> passes;
  std::vector<std::int64_t> batches;
  std::size_t num = 0;
};

using Numbers32 = py::array_t<std::int32_t>;
using Numbers64 = py::array_t<std::int64_t>;

py::typing::Tuple<Numbers32, Numbers64, Numbers64> draws(PySchedule& self, std::size_t n) {
  const Draws drawn(self, n);
  const auto num = static_cast<py::ssize_t>(drawn.num);
  return py::make_tuple(py::array_t<std::int32_t>(num, drawn.sources.data()),
                        py::array_t<std::int64_t>(num, drawn.passes.data()),
                        py::array_t<std::int64_t>(num, drawn.batches.data()));
}

using IntList = py::typing::List<py::int_>;

template <class Int>
IntList as_list(const std::vector<Int>& values, std::size_t num) {
  IntList out(num);
  for (std::size_t i = 0; i < num; ++i) {
    PyObject* value = PyLong_FromLongLong(values[i]);
    if (value == nullptr) {
      throw py::error_already_set();
    }
    PyList_SET_ITEM(out.ptr(), static_cast<py::ssize_t>(i), value);
  }
  return out;
}

py::typing::Tuple<IntList, IntList, IntList> draw_lists(PySchedule& self, std::size_t n) {
  const Draws drawn(self, n);
  return py::make_tuple(as_list(drawn.sources, drawn.num), as_list(drawn.passes, drawn.num),
                        as_list(drawn.batches, drawn.num));
}

py::typing::Dict<py::str, py::object> report(PySchedule& self, std::uint64_t epoch) {
  const EpochIndex index = self.reach(epoch);
  const std::optional<std::uint64_t> end = self.core.num_steps(index);
  if (!end) {
    throw ConfigError(format_message("epoch {} cannot be counted: how many steps it has is not known yet", epoch));
  }
  const auto ranges = self.core.ranges(index, self.core.known_from(index), *end);
  const std::vector<PassPosition> opening = self.core.opening_positions(index);
  EpochReport made;
  without_gil([&] { made = make_report(ranges); });
  for (std::size_t i = 0; i < opening.size() && i < made.sources.size(); ++i) {
    made.sources[i].begin = opening[i];
  }
  py::list sources;
  for (const SourceReport& source : made.sources) {
    sources.append(py::make_tuple(source.num_steps, source.expected, source.max_deviation,
                                  py::make_tuple(source.begin.pass, source.begin.batch),
                                  py::make_tuple(source.end.pass, source.end.batch)));
  }
  py::dict out;
  out["num_steps"] = made.num_steps;
  out["deviation_bound"] = made.deviation_bound;
  out["sources"] = sources;
  return out;
}

ScheduleState state_at(PySchedule& self, std::optional<std::uint64_t> step) {
  return self.core.state(step.value_or(self.core.step()));
}

py::bytes to_bytes(PySchedule& self, std::optional<std::uint64_t> step) {
  const ScheduleState state = state_at(self, step);
  return py::bytes(encode(kScheduleKind, version_of(state), to_value(state)));
}

py::bytes pack_state(const py::object& state) {
  const Value value = from_python(state, "state");
  const std::uint64_t version = Field(value, "state")["version"].integer(kScheduleVersion);
  return py::bytes(encode(kScheduleKind, static_cast<std::uint32_t>(version), value));
}

ScheduleState decode_state(const std::string& bytes) {
  const Decoded decoded = decode(kScheduleKind, kScheduleVersion, std::as_bytes(std::span(bytes)));
  return schedule_state_from(decoded.value, decoded.version);
}

// What Schedule's methods do that the core's don't: defaults, and steps in between that look for signals.

std::optional<std::uint64_t> num_steps(PySchedule& self, std::optional<std::uint64_t> epoch) {
  return self.core.num_steps(epoch_or_current(self, epoch));
}

std::uint64_t first_step(PySchedule& self, std::optional<std::uint64_t> epoch) {
  return self.core.first_step(epoch_or_current(self, epoch));
}

py::array_t<std::int64_t> counts(PySchedule& self, std::uint64_t step, std::optional<std::uint64_t> epoch) {
  return as_array(self.core.counts(step, epoch_or_current(self, epoch)));
}

std::uint64_t known_from(PySchedule& self, std::optional<std::uint64_t> epoch) {
  return self.core.known_from(epoch_or_current(self, epoch));
}

std::optional<std::uint64_t> end_by(PySchedule& self, std::uint64_t step, std::optional<std::uint64_t> epoch) {
  return self.core.end_by(step, epoch_or_current(self, epoch));
}

std::vector<double> expected_counts(PySchedule& self, std::uint64_t step, std::optional<std::uint64_t> epoch) {
  return self.core.expected_counts(step, epoch_or_current(self, epoch));
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> opening_positions(PySchedule& self,
                                                                       std::optional<std::uint64_t> epoch) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> out;
  for (const PassPosition& position : self.core.opening_positions(epoch_or_current(self, epoch))) {
    out.emplace_back(position.pass, position.batch);
  }
  return out;
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> positions(PySchedule& self, std::uint64_t step,
                                                               std::optional<std::uint64_t> epoch) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> out;
  for (const PassPosition& position : self.core.positions(step, epoch_or_current(self, epoch))) {
    out.emplace_back(position.pass, position.batch);
  }
  return out;
}

using Numbers = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>;

py::array_t<std::int64_t> steps_of(PySchedule& self, std::size_t source, const Numbers& passes, const Numbers& batches,
                                   std::uint64_t stop, std::optional<std::uint64_t> epoch) {
  if (passes.size() != batches.size()) {
    throw py::value_error("passes and batches must be equally long");
  }
  const EpochIndex index = epoch_or_current(self, epoch);
  py::array_t<std::int64_t> out(passes.size());
  for (py::ssize_t k = 0; k < passes.size(); ++k) {
    const PassPosition draw{.pass = passes.data()[k], .batch = batches.data()[k]};
    const std::optional<std::uint64_t> step = self.core.step_of(source, draw, stop, index);
    out.mutable_data()[k] = step ? static_cast<std::int64_t>(*step) : -1;
  }
  return out;
}

std::vector<std::tuple<std::string, std::optional<std::uint64_t>, bool>> source_table(PySchedule& self) {
  std::vector<std::tuple<std::string, std::optional<std::uint64_t>, bool>> out;
  for (const SourceSpec& source : self.core.spec().sources) {
    out.emplace_back(source.name, source.length, source.present);
  }
  return out;
}

py::typing::Iterator<PyDraw> iterate(py::object self, std::optional<std::int64_t> num_epochs) {
  return make_draw_iterator(std::move(self), num_epochs.value_or(-1));
}

py::typing::Iterator<PyDraw> iterate_epoch(py::object self) { return make_draw_iterator(std::move(self), 1); }

void seek(PySchedule& self, std::uint64_t epoch, std::uint64_t step) { self.core.seek(self.reach(epoch), step); }

bool change_weights(PySchedule& self, const std::vector<double>& weights, bool keep_curve) {
  return self.core.update_weights(weights, keep_curve);
}

bool edit(PySchedule& self, const py::object& next, const std::vector<std::pair<std::int32_t, std::uint64_t>>& rests,
          const py::object& declared) {
  std::vector<RestLength> lengths;
  for (const auto& [source, num_batches] : rests) {
    lengths.push_back({source, num_batches});
  }
  const bool changed = self.core.edit(mixture_spec_from(from_python(next, "setup")), std::move(lengths),
                                      mixture_spec_from(from_python(declared, "setup")));
  self.refresh_names();
  return changed;
}

bool append_source(PySchedule& self, const std::string& name, std::optional<std::uint64_t> length,
                   std::optional<double> weight, std::optional<std::uint64_t> max_passes, double per_draw) {
  const bool changed = self.core.add_source(name, length, weight, max_passes, per_draw);
  self.refresh_names();
  return changed;
}

py::typing::Dict<py::str, py::object> state_dict(PySchedule& self, std::optional<std::uint64_t> step) {
  return py::dict(to_python(to_value(state_at(self, step))));
}

void load_state_dict(PySchedule& self, const py::object& state) {
  self.core.load(schedule_state_from(from_python(state, "state")));
  self.refresh_names();
}

void load_bytes(PySchedule& self, const py::bytes& bytes) {
  self.core.load(decode_state(bytes));
  self.refresh_names();
}

std::unique_ptr<PySchedule> schedule_from_bytes(const py::bytes& data) {
  return std::make_unique<PySchedule>(Schedule::from_state(decode_state(data)));
}

/// A method of the core, called on the core of a PySchedule.
template <auto Method>
constexpr auto on_core = []<class Result, class... Args>(Result (Schedule::*)(Args...)) {
  return [](PySchedule& self, Args... args) -> Result { return (self.core.*Method)(std::forward<Args>(args)...); };
}(Method);

using ScheduleClass = py::class_<PySchedule>;

void bind_position(ScheduleClass& schedule) {
  schedule.def_property_readonly(
              "seed", [](const PySchedule& s) { return s.core.seed(); }, "The seed.")
      .def_property_readonly(
          "epoch", [](const PySchedule& s) { return s.core.epoch().value; }, "Epoch of the cursor.")
      .def_property_readonly(
          "step", [](const PySchedule& s) { return s.core.step(); },
          "Step of the cursor in its epoch, that is the next draw.")
      .def_property_readonly("epoch_done", on_core<&Schedule::epoch_done>,
                             "Whether the cursor is at the end of its epoch.")
      .def("advance", on_core<&Schedule::advance>, py::arg("n"),
           "Moves the cursor on by `n` steps of its epoch.\n\nRaises:\n    ConfigError: the epoch has fewer steps.")
      .def("next_epoch", on_core<&Schedule::next_epoch>,
           "Opens the next epoch; the cursor must be at the end of its own.")
      .def("seek", &seek, py::arg("epoch"), py::arg("step"),
           "Moves the cursor.\n\nRaises:\n    ConfigError: an epoch before the last edit or loaded state, or a step "
           "beyond the epoch's end.");
}

void bind_draws(ScheduleClass& schedule) {
  schedule
      .def("num_steps", &num_steps, py::arg("epoch") = py::none(),
           "Steps (batches) of an epoch; None if it isn't known before its sources end.")
      .def("first_step", &first_step, py::arg("epoch") = py::none(),
           "Steps drawn in the whole training before an epoch.")
      .def("known_from", &known_from, py::arg("epoch") = py::none(),
           "The first step of an epoch whose draw is known: above 0 only after more edits in the epoch than a state, "
           "or a long run, keeps.")
      .def("sources", &sources, py::arg("epoch") = py::none(), py::arg("start") = 0, py::arg("stop") = py::none(),
           "Index of the source of each step in [start, stop) of an epoch, cut at its end: int32, shape "
           "(steps,).\n\nRaises:\n    ConfigError: `stop` is left out and the epoch's length isn't known yet.")
      .def("counts", &counts, py::arg("step"), py::arg("epoch") = py::none(),
           "Draws of each source in steps [0, step) of an epoch: int64, shape (sources,).\n\nRaises:\n    ConfigError: "
           "the epoch has fewer steps.")
      .def("expected_counts", &expected_counts, py::arg("step"), py::arg("epoch") = py::none(),
           "As `counts`, with the draws that the weights promise in place of those that were made.")
      .def("end_by", &end_by, py::arg("step"), py::arg("epoch") = py::none(),
           "Number of steps of an epoch, if that is `step` or less.")
      .def("places", &positions, py::arg("step"), py::arg("epoch") = py::none(),
           "Per source `(pass, batch)`: it has given `batch` batches of `pass` in the training before `step` of an "
           "epoch.")
      .def("steps_of", &steps_of, py::arg("source"), py::arg("passes"), py::arg("batches"), py::arg("stop"),
           py::arg("epoch") = py::none(),
           "The step in [0, stop) of an epoch that draws each batch of a source (an index), -1 where none does: int64, "
           "as long as `passes` and `batches`. The inverse of `at`, in microseconds at any step; order RANDOM draws "
           "again from the start.\n\nRaises:\n    ConfigError: a step before `known_from`.")
      .def("opening_places", &opening_positions, py::arg("epoch") = py::none(),
           "Per source `(pass, batch)` that it would give next when an epoch begins.")
      .def("report", &report, py::arg("epoch"))
      .def("draws", &draws, py::arg("n"),
           "The next `n` draws from the cursor, which stays, or as many as the epoch has: sources (int32), passes and "
           "batches (int64), each of shape (draws,).")
      .def("draw_lists", &draw_lists, py::arg("n"),
           "The same as lists, for a loop in Python: integers of arrays are made slower.")
      .def("__iter__", &iterate_epoch)
      .def("iterate", &iterate, py::arg("num_epochs") = py::none(),
           "Iterates from the cursor, which it moves, to the end of `num_epochs` epochs; None: without end.");
}

void bind_edits(ScheduleClass& schedule) {
  schedule.def("change_weights", &change_weights, py::arg("weights"), py::arg("keep_curve") = false)
      .def("change_weight", on_core<&Schedule::set_weight>, py::arg("name"), py::arg("weight"),
           py::arg("keep_curve") = false)
      .def("append_source", &append_source, py::arg("name"), py::arg("length"), py::arg("weight"),
           py::arg("max_passes") = py::none(), py::arg("per_draw") = 1.0)
      .def("drop_source", on_core<&Schedule::remove_source>, py::arg("name"))
      .def("change_config", on_core<&Schedule::set_config>, py::arg("config"))
      .def("edit", &edit, py::arg("next"), py::arg("rests"), py::arg("declared"),
           "All of another configuration at once; setups are those of a state. `rests`: (source, batches left of its "
           "pass).")
      .def("end_pass", on_core<&Schedule::end_pass>, py::arg("source"), py::arg("num_batches"),
           "The pass in which `source` (an index) stands ended after `num_batches` batches, whatever its length said.")
      .def("extend_pass", on_core<&Schedule::extend_pass>, py::arg("source"), py::arg("num_batches"),
           "The pass in which `source` (an index) stands is longer than its length says: it has `num_batches` batches "
           "at least.");
}

void bind_state(ScheduleClass& schedule) {
  schedule
      .def("state_dict", &state_dict, py::arg("step") = py::none(),
           "The state at the cursor, or at a step of its epoch before it: plain data, as docs/state-format.md "
           "describes it.")
      .def("to_bytes", &to_bytes, py::arg("step") = py::none(), "As `state_dict`, as bytes with a checksum.")
      .def_static("pack_state", &pack_state, py::arg("state"),
                  "The bytes of what `state_dict` gave, at whatever step it was taken.")
      .def("load_state_dict", &load_state_dict, py::arg("state"),
           "Puts the state from `state_dict` in place, cursor and log.\n\nRaises:\n    StateMismatch: damaged, newer, "
           "or of another seed, configuration, names or lengths; nothing has been changed.")
      .def("load_bytes", &load_bytes, py::arg("data"), "As `load_state_dict`, from the bytes of `to_bytes`.")
      .def_property_readonly("fingerprints", on_core<&Schedule::fingerprints>)
      .def(py::init(&schedule_from_bytes), py::arg("data"));
}

}  // namespace

void bind_schedule(py::module_& module) {
  bind_draw(module);
  ScheduleClass schedule(module, "Schedule");
  bind_random_access(schedule);
  schedule
      .def(py::init(&make_schedule), py::arg("config"), py::arg("names"), py::arg("lengths"), py::arg("seed"),
           py::arg("caps") = Caps{}, py::arg("stops_when_spent") = false)
      .def_property_readonly("mixture", [](PySchedule& s) { return s.core.spec().config; })
      .def_property_readonly("initial_mixture", [](PySchedule& s) { return s.core.initial().config; })
      .def_property_readonly("source_table", &source_table);
  bind_position(schedule);
  bind_draws(schedule);
  bind_edits(schedule);
  bind_state(schedule);
}

}  // namespace mtf::python
