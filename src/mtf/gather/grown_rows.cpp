#include "mtf/gather/grown_rows.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "mtf/error.hpp"

namespace mtf {

namespace {

std::vector<std::uint64_t> shifted(std::span<const std::uint64_t> places, std::uint64_t shift) {
  std::vector<std::uint64_t> out(places.begin(), places.end());
  for (std::uint64_t& place : out) {
    if (place < shift) {
      throw std::out_of_range("a place of a pass that began with fewer rows comes before its rest");
    }
    place -= shift;
  }
  return out;
}

}  // namespace

GrownRows::GrownRows(std::shared_ptr<const RowSource> now, std::shared_ptr<const RowSource> then, std::uint64_t pass)
    : now_(std::move(now)), then_(std::move(then)), pass_(pass) {
  if (then_->num_rows() > now_->num_rows() || !std::ranges::equal(now_->fields(), then_->fields())) {
    throw ConfigError("a source that has grown must have more rows than before, of the same fields");
  }
}

void GrownRows::find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                          std::span<std::uint64_t> rows) const {
  if (pass != pass_) {
    now_->find_rows(key, pass, places, rows);
    return;
  }
  then_->find_rows(key, pass, shifted(places, shift()), rows);
}

std::uint64_t GrownRows::place_of(Key key, std::uint64_t pass, std::uint64_t row) const {
  if (pass != pass_) {
    return now_->place_of(key, pass, row);
  }
  return row < then_->num_rows() ? then_->place_of(key, pass, row) + shift() : num_rows();
}

void GrownRows::write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                           std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const {
  (pass == pass_ ? then_ : now_)->write_rows(key, pass, rows, slots, buffers);
}

}  // namespace mtf
