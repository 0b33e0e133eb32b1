/// The rows of a pass in the order in which they are given: in order, or permuted by the pass's key.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "mtf/random/key.hpp"
#include "mtf/random/permutation.hpp"

namespace mtf {

/// Thread safety: const methods may be called from any number of threads.
class PassOrder {
 public:
  /// Throws: ConfigError for more than 2^62 rows.
  PassOrder(std::uint64_t num_rows, bool shuffle);

  [[nodiscard]] std::uint64_t num_rows() const noexcept { return num_rows_; }

  /// Writes the rows at `places` of pass `pass`; with `shuffle` that is Permutation(num_rows, fold_in(key, pass)).
  /// Throws: std::out_of_range if a place isn't in [0, num_rows) or the spans differ in size.
  /// Complexity: O(places.size()); runs of successive places are the fast case.
  void find(Key key, std::uint64_t pass, std::span<const std::uint64_t> places, std::span<std::uint64_t> rows) const;

  /// The place of a pass at which a row is given. Throws: std::out_of_range if there is no such row.
  /// Complexity: O(1), up to 2 us.
  [[nodiscard]] std::uint64_t place_of(Key key, std::uint64_t pass, std::uint64_t row) const;

 private:
  struct Used {
    Key key;
    std::uint64_t pass;
    Permutation order;
  };
  [[nodiscard]] std::shared_ptr<const Used> order_of(Key key, std::uint64_t pass) const;

  std::uint64_t num_rows_;
  bool shuffle_;
  // The order used last: threads that fetch neighbouring batches share it. Small orders are tables worth keeping.
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Used> used_;
};

}  // namespace mtf
