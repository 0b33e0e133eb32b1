/// Rows of a source that has grown while one of its passes was under way.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "mtf/gather/row_source.hpp"
#include "mtf/sampling/sampler.hpp"

namespace mtf {

/// The rows of `now`, but in one pass those of `then`, in their order: what is left of a pass that began when the
/// source had fewer rows. Place j of that pass is place j - (rows now - rows then) of the order it began with, so that
/// its last place has the number that the last place of every pass has.
class GrownRows : public RowSource {
 public:
  /// Throws: ConfigError if the fields differ, or `then` has more rows.
  GrownRows(std::shared_ptr<const RowSource> now, std::shared_ptr<const RowSource> then, std::uint64_t pass);

  [[nodiscard]] std::uint64_t num_rows() const noexcept override { return now_->num_rows(); }
  [[nodiscard]] std::span<const RowField> fields() const noexcept override { return now_->fields(); }
  void find_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> places,
                 std::span<std::uint64_t> rows) const override;
  /// num_rows(), which no draw has, for a row that the pass under way hadn't.
  [[nodiscard]] std::uint64_t place_of(Key key, std::uint64_t pass, std::uint64_t row) const override;
  void write_rows(Key key, std::uint64_t pass, std::span<const std::uint64_t> rows,
                  std::span<const std::uint32_t> slots, std::span<std::byte* const> buffers) const override;
  [[nodiscard]] std::span<const ArrayView> arrays() const noexcept override { return now_->arrays(); }

 private:
  [[nodiscard]] std::uint64_t shift() const noexcept { return now_->num_rows() - then_->num_rows(); }

  const std::shared_ptr<const RowSource> now_;
  const std::shared_ptr<const RowSource> then_;
  const std::uint64_t pass_;
};

}  // namespace mtf
