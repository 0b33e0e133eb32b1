// Configurations of mixtures, and the names of their options.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings.hpp"
#include "mtf/schedule/mixture_spec.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

using Points = std::vector<std::pair<std::uint64_t, std::vector<double>>>;
/// Points (step, weights), interpolation, every how many steps the weights change.
using Curve = std::tuple<Points, std::string, std::uint64_t>;
using Names = py::typing::List<py::str>;

template <NamedEnum Enum>
Enum member(const std::string& name) {
  if (const std::optional<Enum> found = find_member<Enum>(name)) {
    return *found;
  }
  throw py::value_error("'" + name + "' is none of " + list_names<Enum>());
}

MixtureConfig make_config(const std::string& strategy, const std::string& order, std::vector<double> weights,
                          std::vector<std::int32_t> pattern, std::int64_t burst, const std::string& policy,
                          std::optional<std::int64_t> steps_per_epoch, bool cycle,
                          std::optional<bool> continue_across_epochs, const std::optional<Curve>& curve) {
  MixtureConfig config{.strategy = member<Strategy>(strategy),
                       .order = member<WeightedOrder>(order),
                       .weights = std::move(weights),
                       .pattern = std::move(pattern),
                       .burst = burst,
                       .policy = member<EpochPolicy>(policy),
                       .steps_per_epoch = steps_per_epoch,
                       .cycle = cycle,
                       .continue_across_epochs = continue_across_epochs,
                       .curve = std::nullopt};
  if (curve) {
    WeightCurve& made = config.curve.emplace();
    for (const auto& [step, point_weights] : std::get<0>(*curve)) {
      made.points.push_back({step, point_weights});
    }
    made.interpolation = member<Interpolation>(std::get<1>(*curve));
    made.every = std::get<2>(*curve);
  }
  return config;
}

std::optional<Curve> curve_of(const MixtureConfig& config) {
  if (!config.curve) {
    return std::nullopt;
  }
  Points points;
  for (const WeightCurve::Point& point : config.curve->points) {
    points.emplace_back(point.step, point.weights);
  }
  return std::tuple(points, std::string(name_of(config.curve->interpolation)), config.curve->every);
}

template <NamedEnum Enum, Enum MixtureConfig::* Field>
std::string name_in(const MixtureConfig& config) {
  return std::string(name_of(config.*Field));
}

template <NamedEnum Enum>
Names names_of() {
  Names names;
  for (const EnumRow<Enum>& row : kEnumRows<Enum>) {
    names.append(py::str(row.name));
  }
  return names;
}

py::typing::Dict<py::str, Names> enum_names() {
  py::typing::Dict<py::str, Names> out;
  out["SamplingStrategy"] = names_of<Strategy>();
  out["WeightedOrder"] = names_of<WeightedOrder>();
  out["EpochLengthPolicy"] = names_of<EpochPolicy>();
  out["Interpolation"] = names_of<Interpolation>();
  return out;
}

}  // namespace

void bind_config(py::module_& module) {
  module.def("enum_names", &enum_names, "The members of each enum of options, as the core names them.");
  py::class_<MixtureConfig>(module, "MixtureConfig")
      .def(py::init(&make_config), py::kw_only(), py::arg("strategy"), py::arg("order"), py::arg("weights"),
           py::arg("pattern"), py::arg("burst"), py::arg("policy"), py::arg("steps_per_epoch"), py::arg("cycle"),
           py::arg("continue_across_epochs"), py::arg("curve"))
      .def_property_readonly("strategy", &name_in<Strategy, &MixtureConfig::strategy>)
      .def_property_readonly("order", &name_in<WeightedOrder, &MixtureConfig::order>)
      .def_property_readonly("policy", &name_in<EpochPolicy, &MixtureConfig::policy>)
      .def_readonly("weights", &MixtureConfig::weights)
      .def_readonly("pattern", &MixtureConfig::pattern)
      .def_readonly("burst", &MixtureConfig::burst)
      .def_readonly("steps_per_epoch", &MixtureConfig::steps_per_epoch)
      .def_readonly("cycle", &MixtureConfig::cycle)
      .def_readonly("continue_across_epochs", &MixtureConfig::continue_across_epochs)
      .def_property_readonly("curve", &curve_of)
      .def_property_readonly("useless_options", &find_useless_options);
}

}  // namespace mtf::python
