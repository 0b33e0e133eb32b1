// Keys, random words, permutations and samplers. Bulk calls release the GIL and return new numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/error.hpp"
#include "mtf/message.hpp"
#include "mtf/random/key.hpp"
#include "mtf/random/permutation.hpp"
#include "mtf/random/philox_fill.hpp"
#include "mtf/sampling/sampler.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

using IndexArray = py::array_t<std::int64_t>;
// Without numpy's forced casts: indices that aren't integers are an error, not truncated.
using GivenIndices = py::array_t<std::int64_t, 0>;

/// A new array of `size` elements, filled by `fill(span)` without the GIL.
template <typename T, typename Fill>
py::array_t<T> filled(std::uint64_t size, Fill fill) {
  py::array_t<T> array(static_cast<py::ssize_t>(size));
  const std::span<T> out(array.mutable_data(), static_cast<std::size_t>(size));
  OwnedObject owned(std::move(array));
  without_gil([&] { fill(out); });
  return py::reinterpret_steal<py::array_t<T>>(owned.take().release());
}

IndexArray permutation_range(const Permutation& permutation, std::uint64_t start, std::uint64_t stop) {
  if (stop < start || stop > permutation.size()) {
    throw py::index_error(format_message("[{}, {}) is not a range within [0, {}).", start, stop, permutation.size()));
  }
  return filled<std::int64_t>(stop - start, [&](auto out) { permutation.fill(start, out); });
}

std::uint64_t permutation_item(const Permutation& permutation, std::int64_t index) {
  const auto size = static_cast<std::int64_t>(permutation.size());
  if (index < -size || index >= size) {
    throw py::index_error(format_message("index {} is out of range for a permutation of {} elements.", index, size));
  }
  return permutation(static_cast<std::uint64_t>(index < 0 ? index + size : index));
}

std::unique_ptr<Sampler> make_sampler(std::uint64_t num_samples, std::uint64_t batch_size, std::uint64_t key,
                                      bool shuffle, bool drop_last, const std::optional<GivenIndices>& indices,
                                      std::uint32_t rank, std::uint32_t world_size) {
  SamplerSpec spec{.num_samples = num_samples,
                   .batch_size = batch_size,
                   .shuffle = shuffle,
                   .drop_last = drop_last,
                   .rank = rank,
                   .world_size = world_size,
                   .key = Key{key}};
  if (indices) {
    if (indices->ndim() != 1) {
      throw ConfigError(format_message("`indices` must have one dimension, but has {}.", indices->ndim()));
    }
    const auto values = indices->unchecked<1>();
    auto samples = std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(values.shape(0)));
    for (py::ssize_t i = 0; i < values.shape(0); ++i) {
      (*samples)[static_cast<std::size_t>(i)] = values(i);
    }
    spec.indices = std::move(samples);
  }
  return std::make_unique<Sampler>(std::move(spec));
}

IndexArray sampler_batch(const Sampler& sampler, std::uint64_t pass, std::uint64_t batch) {
  const std::uint64_t size = batch < sampler.num_batches() ? sampler.part(batch).size() : 0;
  return filled<std::int64_t>(size, [&](auto out) { sampler.fill(pass, batch, out); });
}

IndexArray sampler_order(const Sampler& sampler, std::uint64_t pass, std::uint64_t start, std::uint64_t stop) {
  if (stop < start || stop > sampler.spec().num_samples) {
    throw py::index_error(
        format_message("[{}, {}) is not a range within [0, {}).", start, stop, sampler.spec().num_samples));
  }
  return filled<std::int64_t>(stop - start, [&](auto out) { sampler.fill_order(pass, start, out); });
}

std::uint64_t checked_batch(const Sampler& sampler, std::uint64_t batch) {
  if (batch >= sampler.num_batches()) {
    throw py::index_error(
        format_message("a pass has {} batches, but batch {} is asked for.", sampler.num_batches(), batch));
  }
  return batch;
}

/// One signature for both kinds of `data`, as users write it.
void bind_fold_in(py::module_& module) {
  py::options options;
  options.disable_function_signatures();
  module.def(
      "fold_in", [](std::uint64_t key, std::uint64_t data) { return fold_in(Key{key}, data).value; }, py::arg("key"),
      py::arg("data"),
      "fold_in(key: int, data: int | str) -> int\n\nA key that depends on every bit of `key` and `data`: an integer "
      "(both in [0, 2^64)) or a name.");
  module.def(
      "fold_in", [](std::uint64_t key, std::string_view data) { return fold_in(Key{key}, data).value; }, py::arg("key"),
      py::arg("data"));
}

}  // namespace

void bind_random(py::module_& module) {
  bind_fold_in(module);
  module.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"),
             "The four words of Philox4x32-10 at a counter of four words under a key of two.");
  module.def(
      "philox_fill",
      [](std::uint64_t key, std::uint64_t start, std::uint64_t stop) {
        if (stop < start) {
          throw py::index_error("`stop` must not be less than `start`.");
        }
        return filled<std::uint32_t>(stop - start, [&](auto out) { philox_fill(Key{key}, start, out); });
      },
      py::arg("key"), py::arg("start"), py::arg("stop"), "Words [start, stop) of the key's stream, as uint32.");

  py::class_<Permutation>(module, "Permutation",
                          "Permutation(n: int, key: int)\n\nA bijection of [0, n) chosen by a key, for any n up to "
                          "2^62, in O(1) memory. `permutation[i]` is the image of i.")
      .def(py::init([](std::uint64_t n, std::uint64_t key) { return Permutation(n, Key{key}); }), py::arg("n"),
           py::arg("key"))
      .def("__len__", &Permutation::size)
      .def("__repr__",
           [](const Permutation& permutation) { return "Permutation(n=" + std::to_string(permutation.size()) + ")"; })
      .def("__getitem__", &permutation_item, py::arg("index"), "The image of one index.")
      .def(
          "inverse",
          [](const Permutation& permutation, std::uint64_t image) {
            if (image >= permutation.size()) {
              throw py::index_error("image " + std::to_string(image) + " is out of range for a permutation of " +
                                    std::to_string(permutation.size()) + " elements.");
            }
            return permutation.inverse(image);
          },
          py::arg("image"), "The index whose image this is.")
      .def("fill", &permutation_range, py::arg("start"), py::arg("stop"),
           "The images of [start, stop): int64, shape (stop - start,).");

  py::class_<Sampler>(module, "Sampler", "The sample indices of batch b of pass p, as a function of (spec, p, b).")
      .def(py::init(&make_sampler), py::arg("num_samples"), py::arg("batch_size"), py::kw_only(), py::arg("key") = 0,
           py::arg("shuffle") = false, py::arg("drop_last") = false, py::arg("indices") = py::none(),
           py::arg("rank") = 0, py::arg("world_size") = 1,
           "`batch_size` counts the samples of all ranks; `indices` are the samples, if not [0, num_samples).")
      .def("__len__", &Sampler::num_batches)
      .def_property_readonly("num_batches", &Sampler::num_batches,
                             "Global batches of one pass, the same for every rank.")
      .def_property_readonly(
          "num_samples", [](const Sampler& sampler) { return sampler.spec().num_samples; },
          "Samples of one pass, all ranks together, before `drop_last`.")
      .def(
          "global_batch_size",
          [](const Sampler& sampler, std::uint64_t batch) {
            return sampler.global_batch_size(checked_batch(sampler, batch));
          },
          py::arg("batch"), "Samples of global batch `batch`, all ranks together.")
      .def(
          "batch_size",
          [](const Sampler& sampler, std::uint64_t batch) {
            return sampler.part(checked_batch(sampler, batch)).size();
          },
          py::arg("batch"), "Samples of global batch `batch` on this rank; 0 where there are more ranks than samples.")
      .def("batch", &sampler_batch, py::arg("pass_"), py::arg("batch"), "This rank's sample indices, as int64.")
      .def("order", &sampler_order, py::arg("pass_"), py::arg("start"), py::arg("stop"),
           "Places [start, stop) of the pass's global order, as int64.");
}

}  // namespace mtf::python
