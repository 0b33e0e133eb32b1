#include "mtf/tokens/token_rows.hpp"

namespace mtf {

TokenRowPointers TokenRowPointers::in_slot(std::span<std::byte* const> buffers, std::uint64_t slot,
                                           std::uint64_t length) noexcept {
  const std::uint64_t first = slot * length;
  TokenRowPointers row{.input_ids = reinterpret_cast<std::int64_t*>(buffers[0]) + first,
                       .labels = reinterpret_cast<std::int64_t*>(buffers[1]) + first};
  if (buffers.size() == 4) {
    row.position_ids = reinterpret_cast<std::int32_t*>(buffers[2]) + first;
    row.loss_mask = reinterpret_cast<bool*>(buffers[3]) + first;
  }
  return row;
}

std::vector<RowField> token_row_fields(std::uint64_t length, bool boundaries) {
  std::vector<RowField> fields{
      {.name = "input_ids", .dtype = "int64", .item_bytes = 8, .shape = {length}, .counts_positions = false},
      {.name = "labels", .dtype = "int64", .item_bytes = 8, .shape = {length}, .counts_positions = false}};
  if (boundaries) {
    fields.push_back(
        {.name = "position_ids", .dtype = "int32", .item_bytes = 4, .shape = {length}, .counts_positions = true});
    fields.push_back(
        {.name = "loss_mask", .dtype = "bool", .item_bytes = 1, .shape = {length}, .counts_positions = false});
  }
  return fields;
}

}  // namespace mtf
