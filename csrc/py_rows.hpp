/// What Python knows of rows that a blend gathers from.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "mtf/gather/row_source.hpp"

namespace mtf::python {

/// The base of every Python class of rows: a binding derives from it and hands its RowSource to the constructor. What
/// the RowSource reads (arrays, maps) it keeps alive itself, as an OwnedObject.
class PyRowSource {
 public:
  explicit PyRowSource(std::shared_ptr<const RowSource> native) : native_(std::move(native)) {}
  virtual ~PyRowSource() = default;

  [[nodiscard]] const std::shared_ptr<const RowSource>& native() const noexcept { return native_; }

 private:
  std::shared_ptr<const RowSource> native_;
};

}  // namespace mtf::python
