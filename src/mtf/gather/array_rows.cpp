#include "mtf/gather/array_rows.hpp"

#include <string>
#include <utility>

#include "mtf/error.hpp"
#include "mtf/gather/gather.hpp"

namespace mtf {

namespace {

std::uint64_t common_rows(std::span<const ArrayView> arrays) {
  if (arrays.empty()) {
    throw ConfigError("arrays: must be at least one, but there is none");
  }
  for (std::size_t k = 0; k < arrays.size(); ++k) {
    if (arrays[k].num_rows != arrays[0].num_rows) {
      throw ConfigError("arrays: must have the same number of rows, but array 0 has " +
                        std::to_string(arrays[0].num_rows) + " and array " + std::to_string(k) + " has " +
                        std::to_string(arrays[k].num_rows));
    }
  }
  if (arrays[0].num_rows == 0) {
    throw ConfigError("arrays: must have at least one row, but they are empty");
  }
  return arrays[0].num_rows;
}

}  // namespace

ArrayRows::ArrayRows(std::vector<ArrayView> arrays, std::vector<RowField> fields, bool shuffle)
    : arrays_(std::move(arrays)), fields_(std::move(fields)), order_(common_rows(arrays_), shuffle) {
  if (fields_.size() != arrays_.size()) {
    throw ConfigError("fields: must be one per array (" + std::to_string(arrays_.size()) + "), but are " +
                      std::to_string(fields_.size()));
  }
  for (std::size_t k = 0; k < fields_.size(); ++k) {
    if (fields_[k].row_bytes() != arrays_[k].row_bytes) {
      throw ConfigError("fields: a row of array " + std::to_string(k) + " has " + std::to_string(arrays_[k].row_bytes) +
                        " bytes, but its field has " + std::to_string(fields_[k].row_bytes()));
    }
  }
}

void ArrayRows::find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                          std::span<std::uint64_t> rows) const {
  order_.find(key, pass, places, rows);
}

void ArrayRows::write_rows(Key, std::uint64_t, std::span<const std::uint64_t> rows,
                           std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const {
  for (std::size_t k = 0; k < arrays_.size(); ++k) {
    gather_into(arrays_[k], rows, slots, buffers[k]);
  }
}

}  // namespace mtf
