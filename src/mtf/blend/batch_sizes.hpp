/// Where each global batch begins in the samples of a run, when the size of batches changes at given batches.
#pragma once

#include <cstdint>
#include <vector>

namespace mtf {

/// A value. Thread safety: const methods are pure. Complexity of each: O(log stages).
class BatchSizes {
 public:
  /// From batch `first_batch` on, a batch has `size` samples.
  struct Stage {
    std::uint64_t first_batch = 0;
    std::uint64_t size = 0;

    friend bool operator==(const Stage&, const Stage&) = default;
  };

  /// Samples of a run are numbered below this, so that sums of two positions fit into 64 bits.
  static constexpr std::uint64_t kMaxSamples = std::uint64_t{1} << 61;

  /// Throws: ConfigError if there is no stage, the first one isn't at batch 0, their batches don't increase, a size is
  /// 0 or above 2^31, or a stage begins beyond 2^61 samples.
  explicit BatchSizes(std::vector<Stage> stages);

  [[nodiscard]] const std::vector<Stage>& stages() const noexcept { return stages_; }

  /// Samples of batch `batch`.
  [[nodiscard]] std::uint64_t size(std::uint64_t batch) const noexcept;

  /// Samples before batch `batch`: the sum of the sizes before it. Throws: std::out_of_range beyond 2^61.
  [[nodiscard]] std::uint64_t start(std::uint64_t batch) const;

  /// The batch that sample `position` belongs to.
  [[nodiscard]] std::uint64_t batch_of(std::uint64_t position) const noexcept;

  [[nodiscard]] std::uint64_t smallest() const noexcept;
  [[nodiscard]] std::uint64_t largest() const noexcept;

 private:
  [[nodiscard]] std::size_t stage_of(std::uint64_t batch) const noexcept;

  std::vector<Stage> stages_;
  std::vector<std::uint64_t> starts_;  // samples before each stage
};

}  // namespace mtf
