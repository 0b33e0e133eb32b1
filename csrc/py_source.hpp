/// What Python knows of a native source: the source itself, and how its payloads become Python objects.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "mtf/prefetch/native_source.hpp"

namespace mtf::python {

class PySource {
 public:
  explicit PySource(std::shared_ptr<NativeSource> native) : native_(std::move(native)) {}
  virtual ~PySource() = default;

  [[nodiscard]] const std::shared_ptr<NativeSource>& native() const noexcept { return native_; }

  /// The batch for the consumer. Called with the GIL, on the consumer's thread.
  [[nodiscard]] virtual pybind11::object to_python(std::unique_ptr<Payload> payload) const = 0;

 private:
  std::shared_ptr<NativeSource> native_;
};

}  // namespace mtf::python
