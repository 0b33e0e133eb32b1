// The prefetcher. Waiting releases the GIL in slices and looks for signals between them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "gil.hpp"
#include "mtf/message.hpp"
#include "mtf/prefetch/prefetcher.hpp"
#include "py_source.hpp"

namespace py = pybind11;

namespace mtf::python {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kSlice{50};

std::chrono::nanoseconds duration(double seconds) {
  constexpr double kForever = 1e9;  // about thirty years, far from overflow
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, kForever)));
}

void check_signals() {
  if (PyErr_CheckSignals() != 0) {
    throw py::error_already_set();
  }
}

class PyPayload final : public Payload {
 public:
  PyPayload(OwnedObject object, std::size_t num_bytes) : object_(std::move(object)), num_bytes_(num_bytes) {}

  [[nodiscard]] std::size_t num_bytes() const noexcept override { return num_bytes_; }
  [[nodiscard]] py::object take() noexcept { return object_.take(); }

 private:
  OwnedObject object_;
  std::size_t num_bytes_;
};

/// A Python function that fetches. Its exceptions keep their traceback until the consumer raises them.
class CallableSource final : public NativeSource {
 public:
  CallableSource(py::object fetch, py::object num_bytes, bool concurrent)
      : fetch_(std::move(fetch)), num_bytes_(std::move(num_bytes)), concurrent_(concurrent) {}

  std::unique_ptr<Payload> fetch(std::uint64_t pass, std::uint64_t batch) override {
    const WithGil gil;
    // Inside each call Python may end the thread by unwinding it, without the GIL: no frame here may give an object
    // back then, as py::object and the arguments of its calls would.
    try {
      OwnedObject data = result(PyObject_CallFunction(fetch_.get().ptr(), "KK", static_cast<unsigned long long>(pass),
                                                      static_cast<unsigned long long>(batch)));
      const OwnedObject num_bytes = result(PyObject_CallOneArg(num_bytes_.get().ptr(), data.get().ptr()));
      return std::make_unique<PyPayload>(std::move(data), num_bytes.get().cast<std::size_t>());
    } catch (const py::error_already_set& error) {
      throw OwnedError(error);
    }
  }

  bool is_concurrent() const noexcept override { return concurrent_; }
  bool may_block() const noexcept override { return true; }

 private:
  static OwnedObject result(PyObject* object) {
    if (object == nullptr) {
      throw py::error_already_set();
    }
    return OwnedObject(py::reinterpret_steal<py::object>(object));
  }

  OwnedObject fetch_;
  OwnedObject num_bytes_;
  bool concurrent_;
};

using Fetch = py::typing::Callable<py::object(std::uint64_t, std::uint64_t)>;
using Size = py::typing::Callable<py::int_(py::object)>;

class PyCallableSource final : public PySource {
 public:
  PyCallableSource(Fetch fetch, Size num_bytes, bool concurrent)
      : PySource(std::make_shared<CallableSource>(std::move(fetch), std::move(num_bytes), concurrent)) {}

  [[nodiscard]] py::object to_python(std::unique_ptr<Payload> payload) const override {
    return static_cast<PyPayload&>(*payload).take();
  }
};

using SourceHandle = std::shared_ptr<PySource>;
template <typename T>
using GivenArray = py::array_t<T, py::array::c_style>;

class PyPrefetcher {
 public:
  PyPrefetcher(std::vector<SourceHandle> sources, std::size_t num_threads, std::size_t max_batches,
               std::optional<std::size_t> max_bytes)
      : core_(natives(sources),
              {.num_threads = num_threads, .max_batches = max_batches, .max_bytes = max_bytes.value_or(0)}),
        sources_(std::move(sources)) {
    live().insert(this);
  }

  std::size_t add_source(SourceHandle source) {
    const std::size_t number = core_.add_source(source->native());
    sources_.push_back(std::move(source));
    return number;
  }

  void request(const GivenArray<std::int32_t>& sources, const GivenArray<std::int64_t>& passes,
               const GivenArray<std::int64_t>& batches) {
    core_.request({sources.data(), static_cast<std::size_t>(sources.size())},
                  {passes.data(), static_cast<std::size_t>(passes.size())},
                  {batches.data(), static_cast<std::size_t>(batches.size())});
  }

  py::object take(std::size_t source, std::optional<double> timeout_s) {
    std::unique_ptr<Payload> payload;
    try {
      payload = core_.take_ready(source);
      if (payload == nullptr) {
        payload = wait_for(source, timeout_s);
      }
    } catch (const OwnedError& error) {
      error.raise();
    }
    return sources_[source]->to_python(std::move(payload));
  }

  bool close(double grace_s) {
    const Clock::time_point deadline = Clock::now() + duration(grace_s);
    while (true) {
      bool has_ended = false;
      without_gil([&] { has_ended = core_.close(slice_until(deadline)); });
      if (has_ended) {
        return true;
      }
      check_signals();
      if (Clock::now() >= deadline) {
        return false;
      }
    }
  }

  [[nodiscard]] py::typing::Dict<py::str, py::object> stats() const {
    const PrefetchStats stats = core_.stats();
    py::dict result;
    result["wait_s"] = stats.wait_s;
    result["num_taken"] = stats.num_taken;
    result["num_taken_ready"] = stats.num_taken_ready;
    result["num_in_caller"] = stats.num_in_caller;
    result["num_wakeups"] = stats.num_wakeups;
    result["num_queued"] = stats.num_queued;
    result["num_running"] = stats.num_running;
    result["num_ready"] = stats.num_ready;
    result["mean_ready"] = stats.mean_ready;
    result["bytes_held"] = stats.bytes_held;
    result["peak_bytes_held"] = stats.peak_bytes_held;
    result["peak_batches_held"] = stats.peak_batches_held;
    py::list fetch_s, num_fetched, num_taken;
    for (const PrefetchStats::Source& source : stats.sources) {
      fetch_s.append(source.fetch_s);
      num_fetched.append(source.num_fetched);
      num_taken.append(source.num_taken);
    }
    result["source_fetch_s"] = fetch_s;
    result["source_num_fetched"] = num_fetched;
    result["source_num_taken"] = num_taken;
    return result;
  }

  Prefetcher& core() noexcept { return core_; }

  /// All that Python can reach, touched with the GIL only.
  static std::unordered_set<PyPrefetcher*>& live() {
    static auto* set = new std::unordered_set<PyPrefetcher*>();
    return *set;
  }

  /// Joins and destroys without the GIL, which the threads may need to end; the converters need it again.
  struct Deleter {
    void operator()(PyPrefetcher* self) const {
      live().erase(self);
      const std::vector<SourceHandle> sources = std::move(self->sources_);
      const py::gil_scoped_release released;
      delete self;
    }
  };

 private:
  static std::vector<std::shared_ptr<NativeSource>> natives(const std::vector<SourceHandle>& sources) {
    std::vector<std::shared_ptr<NativeSource>> result;
    for (const SourceHandle& source : sources) {
      result.push_back(source->native());
    }
    return result;
  }

  static std::chrono::nanoseconds slice_until(Clock::time_point deadline) {
    return std::clamp<std::chrono::nanoseconds>(deadline - Clock::now(), std::chrono::nanoseconds{0}, kSlice);
  }

  std::unique_ptr<Payload> wait_for(std::size_t source, std::optional<double> timeout_s) {
    const Clock::time_point deadline = Clock::now() + duration(timeout_s.value_or(1e9));
    while (true) {
      std::unique_ptr<Payload> payload;
      without_gil([&] { payload = core_.take(source, slice_until(deadline)); });
      if (payload != nullptr) {
        return payload;
      }
      check_signals();
      if (Clock::now() >= deadline) {
        const py::object type = py::module_::import("mtf.errors").attr("FetchTimeout");
        const std::string text =
            format_message("source {}: its next batch wasn't there after {} s", source, timeout_s.value_or(0));
        PyErr_SetString(type.ptr(), text.c_str());
        throw py::error_already_set();
      }
    }
  }

  Prefetcher core_;
  std::vector<SourceHandle> sources_;
};

void close_all() {
  const std::vector<PyPrefetcher*> engines(PyPrefetcher::live().begin(), PyPrefetcher::live().end());
  for (PyPrefetcher* engine : engines) {
    if (PyPrefetcher::live().contains(engine)) {
      engine->close(std::chrono::duration<double>(Prefetcher::kGrace).count());
    }
  }
  ExitGate::close();  // a thread that was left behind may end its fetch at any moment from here on
}

}  // namespace

void bind_prefetch(py::module_& module) {
  py::class_<PySource, SourceHandle>(module, "NativeSource", "What the prefetcher's threads fetch from.");
  py::class_<PyCallableSource, PySource, std::shared_ptr<PyCallableSource>>(
      module, "CallableSource", "A Python function `fetch(pass_, batch)`, called on the prefetcher's threads.")
      .def(py::init<Fetch, Size, bool>(), py::arg("fetch"), py::arg("num_bytes"), py::kw_only(),
           py::arg("concurrent") = true,
           "`num_bytes(batch)` is what a batch counts against the budget; `concurrent`: several threads may fetch at "
           "once.");
  py::class_<PyPrefetcher, std::unique_ptr<PyPrefetcher, PyPrefetcher::Deleter>>(
      module, "Prefetcher", "Fetches the batches of many sources ahead of their use, under one budget.")
      .def(py::init([](std::vector<SourceHandle> sources, std::size_t num_threads, std::size_t max_batches,
                       std::optional<std::size_t> max_bytes) {
             return std::unique_ptr<PyPrefetcher, PyPrefetcher::Deleter>(
                 new PyPrefetcher(std::move(sources), num_threads, max_batches, max_bytes));
           }),
           py::arg("sources"), py::arg("num_threads"), py::arg("max_batches"), py::arg("max_bytes") = py::none())
      .def("add_source", &PyPrefetcher::add_source, py::arg("source"), "Returns the new source's number.")
      .def("request", &PyPrefetcher::request, py::arg("sources"), py::arg("passes"), py::arg("batches"),
           "Appends draws in the order in which they will be taken.")
      .def("take", &PyPrefetcher::take, py::arg("source"), py::arg("timeout_s") = py::none(),
           "The oldest requested batch of a source; raises what its fetch raised.")
      .def(
          "discard",
          [](PyPrefetcher& self, std::size_t source) {
            std::size_t num_dropped = 0;
            without_gil([&] { num_dropped = self.core().discard(source); });
            return num_dropped;
          },
          py::arg("source"), "Forgets a source's requested batches; returns how many.")
      .def(
          "reset", [](PyPrefetcher& self) { without_gil([&] { self.core().reset(); }); },
          "Forgets every requested batch.")
      .def("stats", &PyPrefetcher::stats)
      .def("close", &PyPrefetcher::close,
           py::arg("grace_s") = std::chrono::duration<double>(Prefetcher::kGrace).count(),
           "Ends the threads; False if one is still inside a fetch after `grace_s` seconds.");
  py::module_::import("atexit").attr("register")(py::cpp_function(&close_all));
}

}  // namespace mtf::python
