/// The GIL on threads that aren't Python's, and Python objects owned by native ones.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace mtf::python {

/// False while or after the interpreter ends, when no thread may ask for the GIL any more.
[[nodiscard]] inline bool interpreter_is_alive() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() != 0 && Py_IsFinalizing() == 0;
#else
  return Py_IsInitialized() != 0 && _Py_IsFinalizing() == 0;
#endif
}

/// Where destructors ask for the GIL. Python ends a thread that asks while the interpreter ends by unwinding it, and an
/// unwound destructor terminates the process; so from the interpreter's exit on nobody enters.
class ExitGate {
 public:
  ExitGate() noexcept {
    ++inside;
    is_open_ = !closed && interpreter_is_alive();
  }
  ExitGate(const ExitGate&) = delete;
  ExitGate& operator=(const ExitGate&) = delete;
  ~ExitGate() { --inside; }

  /// Whether the GIL may be asked for while this lives.
  [[nodiscard]] bool is_open() const noexcept { return is_open_; }

  /// Lets nobody in any more and waits for those inside. Requires the GIL, which is released meanwhile.
  static void close() {
    closed = true;
    const pybind11::gil_scoped_release released;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (inside != 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
  }

 private:
  inline static std::atomic<int> inside{0};
  inline static std::atomic<bool> closed{false};
  bool is_open_ = false;
};

/// Holds the GIL while it lives, on any thread. Hold no native lock when making one.
class WithGil {
 public:
  WithGil() : state_((keep_thread_state(), PyGILState_Ensure())) {}
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;
  ~WithGil() {
    // A thread that Python ends at interpreter exit is unwound through here without the GIL.
    if (interpreter_is_alive()) {
      PyGILState_Release(state_);
    }
  }

 private:
  /// Gives a native thread one Python thread state for its whole life: made anew for each call, it would lose what
  /// Python code keeps in `threading.local` (open files, connections).
  static void keep_thread_state() {
    struct PrefixCountCache {
      PyGILState_STATE state = PyGILState_Ensure();
      PyThreadState* thread = PyEval_SaveThread();
      PrefixCountCache() = default;
      PrefixCountCache(const PrefixCountCache&) = delete;
      PrefixCountCache& operator=(const PrefixCountCache&) = delete;
      ~PrefixCountCache() {
        const ExitGate gate;
        if (!gate.is_open()) {
          return;
        }
        PyEval_RestoreThread(thread);
        PyGILState_Release(state);
      }
    };
    if (PyGILState_GetThisThreadState() == nullptr) {
      thread_local const PrefixCountCache kept;
    }
  }

  PyGILState_STATE state_;
};

/// Calls `call` without the GIL, and raises what it throws with the GIL.
///
/// Python ends a thread that asks for the GIL while the interpreter ends by unwinding it, which pybind11's guard, a
/// destructor, would turn into the end of the process. So the GIL is asked for in a plain call. No frame that calls
/// this may hold a py::object, which would be given back without the GIL: an OwnedObject may.
template <class Call>
void without_gil(const Call& call) {
  PyThreadState* const thread = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    call();
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {
    throw;
#endif
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(thread);
  if (error) {
    std::rethrow_exception(std::move(error));
  }
}

/// A Python object that may die on any thread, with or without the GIL.
class OwnedObject {
 public:
  OwnedObject() = default;
  explicit OwnedObject(pybind11::object object) : object_(std::move(object)) {}
  OwnedObject(OwnedObject&&) = default;
  OwnedObject(const OwnedObject&) = delete;
  OwnedObject& operator=(const OwnedObject&) = delete;
  OwnedObject& operator=(OwnedObject&&) = delete;
  ~OwnedObject() {
    if (!object_) {
      return;
    }
    const ExitGate gate;
    if (!gate.is_open()) {
      object_.release();  // the process is ending: nobody may touch it
      return;
    }
    const WithGil gil;
    object_ = pybind11::object();
  }

  /// Requires the GIL for any use of what it gives.
  [[nodiscard]] const pybind11::object& get() const noexcept { return object_; }
  [[nodiscard]] pybind11::object take() noexcept { return std::move(object_); }

 private:
  pybind11::object object_;
};

/// A Python exception that may die on any thread, with or without the GIL. pybind11's own asks for the GIL when it
/// dies, also where that ends the process.
class OwnedError : public std::exception {
 public:
  /// Requires the GIL.
  explicit OwnedError(const pybind11::error_already_set& error)
      : error_(new pybind11::error_already_set(error), [](const pybind11::error_already_set* held) {
          const ExitGate gate;
          if (gate.is_open()) {
            delete held;
          }
        }) {}

  /// Requires the GIL.
  [[noreturn]] void raise() const { throw pybind11::error_already_set(*error_); }

 private:
  std::shared_ptr<const pybind11::error_already_set> error_;
};

}  // namespace mtf::python
