#include "mtf/sampling/pass_order.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "mtf/error.hpp"

namespace mtf {

PassOrder::PassOrder(std::uint64_t num_rows, bool shuffle) : num_rows_(num_rows), shuffle_(shuffle) {
  if (num_rows > Permutation::kMaxSize) {
    throw ConfigError("num_rows: must be at most 2^62, but is " + std::to_string(num_rows));
  }
}

void PassOrder::find(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                     std::span<std::uint64_t> rows) const {
  if (rows.size() != places.size()) {
    throw std::out_of_range(std::to_string(places.size()) + " rows are asked for, but there is room for " +
                            std::to_string(rows.size()));
  }
  std::uint64_t apart = 0;  // from a run of successive places, as they are most often
  for (std::size_t k = 0; k < places.size(); ++k) {
    apart |= places[k] ^ (places[0] + k);
  }
  const bool is_run = apart == 0;
  const std::uint64_t greatest = places.empty() ? 0 : is_run ? places.back() : *std::ranges::max_element(places);
  if (!places.empty() && greatest >= num_rows_) {
    throw std::out_of_range("place: must be in [0, " + std::to_string(num_rows_) + "), but is " +
                            std::to_string(greatest));
  }
  if (!shuffle_) {
    std::ranges::copy(places, rows.begin());
    return;
  }
  if (places.empty()) {
    return;
  }
  const std::shared_ptr<const Used> used = order_of(key, pass);
  if (is_run) {
    // Rows are below 2^62, so that both kinds of integer have the same bits.
    used->order.fill(places[0], {reinterpret_cast<std::int64_t*>(rows.data()), rows.size()});
    return;
  }
  for (std::size_t k = 0; k < places.size(); ++k) {
    rows[k] = used->order(places[k]);
  }
}

std::uint64_t PassOrder::place_of(Key key, std::uint64_t pass, std::uint64_t row) const {
  if (row >= num_rows_) {
    throw std::out_of_range("row: must be in [0, " + std::to_string(num_rows_) + "), but is " + std::to_string(row));
  }
  return shuffle_ ? order_of(key, pass)->order.inverse(row) : row;
}

std::shared_ptr<const PassOrder::Used> PassOrder::order_of(Key key, std::uint64_t pass) const {
  {
    const std::lock_guard lock(mutex_);
    if (used_ && used_->pass == pass && used_->key == key) {
      return used_;
    }
  }
  auto made = std::make_shared<const Used>(Used{key, pass, Permutation(num_rows_, fold_in(key, pass))});
  const std::lock_guard lock(mutex_);
  used_ = made;
  return made;
}

}  // namespace mtf
