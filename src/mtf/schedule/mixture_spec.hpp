/// What a schedule is made from: sources, a strategy with its options, and where an epoch ends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mtf/schedule/enum_names.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/schedule/weight_curve.hpp"

namespace mtf {

/// A source as the schedule sees it. Its index never changes; one that was removed stays with `present` false.
struct SourceSpec {
  std::string name;
  std::optional<std::uint64_t> length{};  // batches in one pass; none: unknown
  bool present = true;
  std::optional<std::uint64_t> max_passes{};  // passes after which it is spent; none: any number
  std::optional<std::int32_t> heir{};         // index of the source that gets its weight then; none: all others
  double per_draw = 1.0;                      // what weights are of, per batch: an heir gets as much of it

  /// Batches after which a pass ends by itself: kUnbounded where that shows only at run time.
  [[nodiscard]] std::uint64_t pass_limit() const noexcept { return length.value_or(kUnbounded); }

  friend bool operator==(const SourceSpec&, const SourceSpec&) = default;
};

struct MixtureConfig {
  Strategy strategy = Strategy::round_robin;
  WeightedOrder order = WeightedOrder::random;
  std::vector<double> weights{};        // one per source; empty: all equal
  std::vector<std::int32_t> pattern{};  // indices of sources
  std::int64_t burst = 1;
  EpochPolicy policy = EpochPolicy::sum_of_lengths;
  std::optional<std::int64_t> steps_per_epoch{};
  bool cycle = true;
  std::optional<bool> continue_across_epochs{};  // none: true for fixed_num_steps
  std::optional<WeightCurve> curve{};            // replaces `weights`

  [[nodiscard]] bool continues() const noexcept {
    return continue_across_epochs.value_or(policy == EpochPolicy::fixed_num_steps);
  }
  /// Sources leave when they run out.
  [[nodiscard]] bool drops_out() const noexcept { return !cycle && policy != EpochPolicy::min_length; }

  friend bool operator==(const MixtureConfig&, const MixtureConfig&) = default;
};

/// Sources and configuration together: what an edit changes.
struct MixtureSpec {
  MixtureConfig config;
  std::vector<SourceSpec> sources;
  bool stops_when_spent = false;  // the epoch ends at the first demand for a source that is spent

  /// Whether a source has a largest number of passes.
  [[nodiscard]] bool is_capped() const noexcept;
  /// Sources leave when they run out, or are spent.
  [[nodiscard]] bool drops_out() const noexcept { return config.drops_out() || (is_capped() && !stops_when_spent); }
  /// Batches that `source`, which stands at batch `batch` of pass `pass`, gives before it runs out or is spent.
  /// `with_caps` is is_capped(), which looks at every source.
  [[nodiscard]] std::uint64_t num_left(std::size_t source, std::uint64_t pass, std::uint64_t batch,
                                       bool with_caps) const noexcept;
  /// Moves the weights of sources that `are_spent` to their heirs, in proportion to `per_draw`; a chain of heirs ends
  /// at the first that isn't. The weights of those without an heir become 0.
  void pass_on(std::vector<double>& weights, const std::vector<bool>& are_spent) const;
  /// The first heir of `source`, of its heir and so on that is there and not spent; none where there is no such.
  [[nodiscard]] std::optional<std::size_t> find_heir(std::size_t source, const std::vector<bool>& are_spent) const;

  [[nodiscard]] std::size_t num_present() const noexcept;
  /// The weight of each source in force at `training_step` (batches since the beginning of training); 0 if removed.
  [[nodiscard]] std::vector<double> weights_at(std::uint64_t training_step) const;
  /// Which sources the strategy ever draws at `training_step`.
  [[nodiscard]] std::vector<bool> active_at(std::uint64_t training_step) const;
  /// The index of a present source. Throws ConfigError, which suggests the nearest name.
  [[nodiscard]] std::size_t index_of(std::string_view name) const;

  friend bool operator==(const MixtureSpec&, const MixtureSpec&) = default;
};

/// Throws ConfigError for the first rule that is broken; names parameter, rule, position and value.
void validate(const MixtureSpec& spec);

/// Options that have no effect with the strategy chosen, one sentence each.
[[nodiscard]] std::vector<std::string> find_useless_options(const MixtureConfig& config);

/// "; did you mean 'x'?" for the name closest to `name`, or nothing when none is close.
[[nodiscard]] std::string suggest(std::string_view name, std::span<const std::string> known);

}  // namespace mtf
