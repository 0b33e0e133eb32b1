/// Arrays of numpy as views of rows, and rows in pooled memory as tensors of torch.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "dlpack.hpp"
#include "mtf/gather/array_view.hpp"
#include "mtf/gather/buffer_pool.hpp"

namespace mtf::python {

/// Shared by all sources, so that what one has let go another can use.
[[nodiscard]] const std::shared_ptr<BufferPool>& batch_memory();

/// One tensor of a batch: its dimensions after the rows, its items, and what makes a tensor of a DLPack capsule.
struct Column {
  std::vector<std::int64_t> row_shape;
  dlpack::DataType type{};
  pybind11::object import;
};

/// A column as Python gives it: the shape of one row, DLPack's code and bits, and what makes a tensor of a capsule.
using Importer = pybind11::typing::Callable<pybind11::object(pybind11::object)>;
using ColumnSpec = std::tuple<std::vector<std::int64_t>, std::uint8_t, std::uint8_t, Importer>;
[[nodiscard]] Column make_column(const ColumnSpec& spec);

/// A tensor of `num_rows` rows that owns `buffer`: releasing it gives the memory back to the pool, with or without the
/// GIL.
[[nodiscard]] pybind11::object to_tensor(Buffer buffer, std::uint64_t num_rows, const Column& column);

/// Windows of `length` rows, `stride` apart.
struct ArrayWindow {
  std::uint64_t length;
  std::uint64_t stride;
};

/// The rows of an array, or its windows. The array must outlive the view.
[[nodiscard]] ArrayView array_view(const pybind11::array& array, const std::optional<ArrayWindow>& window);

}  // namespace mtf::python
