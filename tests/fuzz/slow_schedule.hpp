/// The meaning of a schedule, one step after the other: each step asks whether the epoch is over, then who is next.
/// Ends of passes that the lengths don't tell happen when a source is asked for a batch that it doesn't have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mtf/schedule/integer_weights.hpp"
#include "mtf/schedule/mixture_spec.hpp"
#include "mtf/schedule/segment.hpp"
#include "slow_pattern.hpp"

namespace fuzz {

/// Value semantics: a copy continues by itself.
class SlowSchedule {
 public:
  /// `true_lengths`: batches that each source really has in a pass, at most its length.
  SlowSchedule(mtf::MixtureSpec spec, std::uint64_t seed, Counts true_lengths)
      : spec_(std::move(spec)), seed_(seed), true_lengths_(std::move(true_lengths)) {
    open_epoch();
  }

  /// The spec from here on; `true_lengths` has one entry per source.
  void edit(const mtf::MixtureSpec& spec, Counts true_lengths) {
    sources_.resize(spec.sources.size());
    for (std::size_t i = 0; i < spec_.sources.size(); ++i) {
      if (!spec.sources[i].present || spec_.sources[i].present) {
        continue;
      }
      if (sources_[i].place.batch > 0) {
        sources_[i].place = {sources_[i].place.pass + 1, 0};
      }
      sources_[i].exhausted = false;
    }
    settle();
    for (Source& source : sources_) {
      source.deficit =
          static_cast<std::int64_t>(static_cast<Signed>(source.deficit) * spec_.config.burst / spec.config.burst);
    }
    spec_ = spec;
    true_lengths_ = std::move(true_lengths);
    restart();
  }

  /// The draw of this step; nothing when the epoch is over.
  std::optional<mtf::Draw> next() {
    const mtf::MixtureConfig& config = spec_.config;
    while (true) {
      const std::uint64_t now = first_step_ + step_;
      const bool has_curve = config.strategy == mtf::Strategy::weighted && config.curve;
      if (is_over()) {
        return std::nullopt;
      }
      const std::optional<std::size_t> found = peek();
      if (!found || (config.policy == mtf::EpochPolicy::min_length && !is_alive(*found))) {
        return std::nullopt;
      }
      if (has_curve && origin_ < step_ && config.curve->next_change(now - 1) == now) {
        settle();
        restart();  // an epoch that ends here under the old weights has ended
        continue;
      }
      Source& source = sources_[*found];
      if (source.place.batch == length(*found)) {
        source.place = {source.place.pass + 1, 0};
      }
      if (source.place.batch < true_lengths_[*found]) {
        const mtf::Draw draw{step_, static_cast<Slot>(*found), source.place.pass, source.place.batch};
        ++source.place.batch;
        ++source.count;
        source.in_round += source.in_round == kUnbounded ? 0 : 1;
        ++step_;
        if (config.strategy != mtf::Strategy::sequential) {
          pattern_->take();
        }
        if (config.drops_out() && source.place.batch == length(*found)) {
          close_stretch();
          const auto slot = std::ranges::find(slots_, *found);
          has_left_.resize(slots_.size());
          has_left_[static_cast<std::size_t>(slot - slots_.begin())] = true;
        }
        return draw;
      }
      end_pass(*found);
    }
  }

  void next_epoch() {
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      Source& source = sources_[i];
      const bool is_done = source.exhausted || source.place.batch == length(i);
      const bool moves_on = spec_.config.continues() ? is_done : source.place.batch > 0;
      source = {.place = moves_on ? mtf::PassPosition{source.place.pass + 1, 0} : source.place};
    }
    first_step_ += step_;
    step_ = 0;
    ++epoch_;
    open_epoch();
  }

  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }
  [[nodiscard]] Counts counts() const {
    Counts counts;
    for (const Source& source : sources_) {
      counts.push_back(source.count);
    }
    return counts;
  }

 private:
  struct Source {
    mtf::PassPosition place{};
    std::uint64_t count = 0;     // in this epoch
    std::uint64_t in_round = 0;  // SEQUENTIAL: in this round; kUnbounded: its block is done
    bool exhausted = false;
    bool is_gone = false;      // for the pattern in force: removed, or exhausted before it began
    std::int64_t deficit = 0;  // EVEN, SHUFFLED: at the pattern's beginning, in units of 2^-48 turns
    std::uint64_t before = 0;  // count when the pattern began
  };
  using Signed = __int128;

  [[nodiscard]] std::uint64_t length(std::size_t i) const { return spec_.sources[i].pass_limit(); }
  [[nodiscard]] bool is_alive(std::size_t i) const {
    return !sources_[i].exhausted && sources_[i].place.batch < length(i);
  }
  /// Sources that the strategy draws with the weights of the pattern in force.
  [[nodiscard]] std::vector<std::size_t> drawn() const {
    const std::vector<double> weights = spec_.weights_at(first_step_ + origin_);
    const std::vector<Slot>& pattern = spec_.config.pattern;
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < spec_.sources.size(); ++i) {
      const bool is_in = spec_.config.strategy == mtf::Strategy::weighted ? weights[i] > 0
                         : spec_.config.strategy == mtf::Strategy::alternating
                             ? std::ranges::find(pattern, static_cast<Slot>(i)) != pattern.end()
                             : spec_.sources[i].present;
      if (is_in) {
        out.push_back(i);
      }
    }
    return out;
  }

  void open_epoch() {
    sources_.resize(spec_.sources.size());
    continues_ = false;
    num_in_block_ = 0;
    restart();
  }

  /// numerator / denominator in units of 2^-48, rounded down, digit by digit.
  static Signed units(Signed numerator, Signed denominator) {
    Signed result = numerator / denominator;
    Signed rest = numerator % denominator;
    for (int digit = 0; digit < 48; ++digit) {
      rest *= 2;
      result = 2 * result + (rest >= denominator ? 1 : 0);
      rest -= rest >= denominator ? denominator : 0;
    }
    return result;
  }

  [[nodiscard]] bool is_carrying() const {
    return spec_.config.strategy == mtf::Strategy::weighted && spec_.config.order != mtf::WeightedOrder::random;
  }

  /// Adds the shares since the last slot left, or the pattern began.
  void close_stretch() {
    if (!is_carrying()) {
      return;
    }
    has_left_.resize(slots_.size());
    Signed total = 0;
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      total += has_left_[slot] ? 0 : whole_[slot];
    }
    for (std::size_t slot = 0; slot < slots_.size() && step_ > stretch_; ++slot) {
      if (!has_left_[slot]) {
        shares_[slot] += units(Signed{step_ - stretch_} * whole_[slot], total * spec_.config.burst);
      }
    }
    stretch_ = step_;
  }

  /// Each source's deficit when the pattern in force ends here.
  void settle() {
    if (!is_carrying() || slots_.empty()) {
      for (Source& source : sources_) {
        source.deficit = 0;
      }
      continues_ = false;
      num_in_block_ = 0;
      return;
    }
    close_stretch();
    continues_ = continues_ || step_ > origin_;
    const bool is_shuffled = spec_.config.order == mtf::WeightedOrder::shuffled;
    num_in_block_ = is_shuffled ? static_cast<std::uint32_t>((num_in_block_ + pattern_->num_turns()) % 64) : 0;
    for (Source& source : sources_) {
      source.deficit = source.is_gone ? 0 : source.deficit;
    }
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      Source& source = sources_[slots_[slot]];
      source.deficit = static_cast<std::int64_t>(slot_deficits_[slot] + shares_[slot] -
                                                 units(Signed{source.count - source.before}, spec_.config.burst));
    }
  }

  /// What each slot begins with: its own, and its part of what those left behind that are gone.
  void share_out() {
    slot_deficits_.clear();
    shares_.assign(slots_.size(), 0);
    has_left_.assign(slots_.size(), false);
    stretch_ = step_;
    Signed left_behind = 0;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      Source& source = sources_[i];
      source.before = source.count;
      source.is_gone = (spec_.config.drops_out() && !is_alive(i)) || !spec_.sources[i].present;
      const bool is_slot = std::ranges::find(slots_, i) != slots_.end();
      left_behind += source.is_gone && !is_slot ? source.deficit : 0;
    }
    Signed total = 0;
    for (const std::uint32_t weight : whole_) {
      total += weight;
    }
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      slot_deficits_.push_back(sources_[slots_[slot]].deficit +
                               static_cast<std::int64_t>(left_behind * whole_[slot] / total));
    }
  }

  /// Begins the pattern anew, with the sources that are left and what they still have.
  void restart() {
    origin_ = step_;
    slots_ = drawn();
    const mtf::MixtureConfig& config = spec_.config;
    if (config.drops_out()) {
      std::erase_if(slots_, [this](std::size_t i) { return !is_alive(i); });
    }
    pattern_.reset();
    if (config.strategy == mtf::Strategy::sequential || slots_.empty()) {
      return;
    }
    Counts limits(slots_.size(), kUnbounded);
    for (std::size_t slot = 0; config.drops_out() && slot < slots_.size(); ++slot) {
      if (length(slots_[slot]) != kUnbounded) {
        limits[slot] = length(slots_[slot]) - sources_[slots_[slot]].place.batch;
      }
    }
    pattern_.emplace(make_turns(limits), static_cast<std::uint64_t>(config.burst), limits);
  }

  [[nodiscard]] std::unique_ptr<SlowTurns> make_turns(const Counts& limits) {
    const mtf::MixtureConfig& config = spec_.config;
    if (config.strategy != mtf::Strategy::weighted) {
      std::vector<Slot> entries;
      const bool is_round_robin = config.strategy == mtf::Strategy::round_robin;
      for (std::size_t slot = 0; is_round_robin && slot < slots_.size(); ++slot) {
        entries.push_back(static_cast<Slot>(slot));
      }
      for (std::size_t at = 0; !is_round_robin && at < config.pattern.size(); ++at) {
        const auto found = std::ranges::find(slots_, static_cast<std::size_t>(config.pattern[at]));
        if (found != slots_.end()) {
          entries.push_back(static_cast<Slot>(found - slots_.begin()));
        }
      }
      return std::make_unique<SlowRotation>(entries);
    }
    const std::vector<double> all_weights = spec_.weights_at(first_step_ + origin_);
    std::vector<double> weights;
    std::vector<std::string> names;
    for (const std::size_t source : slots_) {
      weights.push_back(all_weights[source]);
      names.push_back(spec_.sources[source].name);
    }
    const std::vector<std::uint32_t> whole = mtf::quantise(weights);
    whole_ = whole;
    mtf::Key key = mtf::fold_in(mtf::fold_in(mtf::Key{seed_}, "schedule"), epoch_);
    key = mtf::fold_in(key, origin_);
    if (config.order == mtf::WeightedOrder::random) {
      return std::make_unique<SlowRandom>(whole, key);
    }
    share_out();
    if (config.order == mtf::WeightedOrder::even && !continues_) {
      return std::make_unique<SlowEven>(whole, names, key);
    }
    Counts turns;
    const auto burst = static_cast<std::uint64_t>(config.burst);
    for (const std::uint64_t limit : limits) {
      turns.push_back(limit == kUnbounded ? kUnbounded : (limit + burst - 1) / burst);
    }
    if (std::ranges::all_of(turns, [](std::uint64_t turn) { return turn == kUnbounded; })) {
      turns.clear();
    }
    const mtf::EvenDraws even(whole, names, turns, key, continues_ ? slot_deficits_ : std::vector<std::int64_t>{});
    if (config.order == mtf::WeightedOrder::even) {
      return std::make_unique<CoreEven>(even);
    }
    return std::make_unique<CoreShuffled>(mtf::ShuffledBlocks(even, key, num_in_block_));
  }

  /// Whether the policy says so, whoever would be next.
  [[nodiscard]] bool is_over() const {
    const mtf::MixtureConfig& config = spec_.config;
    const std::vector<std::size_t> active = drawn();
    switch (config.policy) {
      case mtf::EpochPolicy::fixed_num_steps:
        return step_ >= static_cast<std::uint64_t>(*config.steps_per_epoch);
      case mtf::EpochPolicy::sum_of_lengths: {
        if (!config.cycle) {
          return false;
        }
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < sources_.size(); ++i) {
          sum += std::ranges::find(active, i) != active.end() ? length(i) : sources_[i].count;
        }
        return step_ >= sum;
      }
      case mtf::EpochPolicy::max_length:
        return config.cycle && config.strategy != mtf::Strategy::sequential &&
               std::ranges::all_of(active, [this](std::size_t i) { return sources_[i].count >= length(i); });
      case mtf::EpochPolicy::min_length:
        return false;
    }
    return false;
  }

  std::optional<std::size_t> peek() {
    if (spec_.config.strategy == mtf::Strategy::sequential) {
      return peek_block();
    }
    if (!pattern_) {
      return std::nullopt;
    }
    const std::optional<Slot> slot = pattern_->peek();
    return slot ? std::optional(slots_[static_cast<std::size_t>(*slot)]) : std::nullopt;
  }

  /// The first source whose block isn't done; rounds follow one another where the number of steps is fixed.
  std::optional<std::size_t> peek_block() {
    const mtf::MixtureConfig& config = spec_.config;
    const std::vector<std::size_t> active = drawn();
    std::uint64_t shortest = kUnbounded;
    std::uint64_t longest = 0;
    for (const std::size_t i : active) {
      shortest = std::min(shortest, length(i));
      longest = std::max(longest, length(i));
    }
    for (int round = 0; round < 2; ++round) {
      for (const std::size_t i : active) {
        const std::uint64_t block = config.policy == mtf::EpochPolicy::min_length                   ? shortest
                                    : config.policy == mtf::EpochPolicy::max_length && config.cycle ? longest
                                                                                                    : length(i);
        if (sources_[i].in_round < block && (!config.drops_out() || is_alive(i))) {
          return i;
        }
      }
      if (config.policy != mtf::EpochPolicy::fixed_num_steps || !config.cycle) {
        return std::nullopt;
      }
      for (Source& source : sources_) {
        source.in_round = 0;
      }
    }
    return std::nullopt;
  }

  /// Source `i` was asked for a batch that it doesn't have.
  void end_pass(std::size_t i) {
    const mtf::MixtureConfig& config = spec_.config;
    if (config.policy == mtf::EpochPolicy::min_length) {
      sources_[i].exhausted = true;
    } else if (config.drops_out()) {
      sources_[i].exhausted = true;
      const auto slot = std::ranges::find(slots_, i);
      if (config.strategy == mtf::Strategy::weighted) {
        settle();
        restart();  // among the weights that are left
      } else if (pattern_) {
        pattern_->spend(static_cast<Slot>(slot - slots_.begin()));
      }
    } else {
      sources_[i].place = {sources_[i].place.pass + 1, 0};
      if (length(i) == kUnbounded) {
        sources_[i].in_round = kUnbounded;
      }
    }
  }

  mtf::MixtureSpec spec_;
  std::uint64_t seed_;
  Counts true_lengths_;
  std::uint64_t epoch_ = 0;
  std::uint64_t first_step_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t origin_ = 0;
  std::vector<Source> sources_;
  std::vector<std::size_t> slots_;
  std::optional<SlowPattern> pattern_;
  bool continues_ = false;          // EVEN, SHUFFLED: from the sources' deficits
  std::uint32_t num_in_block_ = 0;  // SHUFFLED: turns of the first block that were drawn before
  std::vector<std::uint32_t> whole_;
  std::vector<std::int64_t> slot_deficits_;
  std::vector<Signed> shares_;  // of each slot since the pattern began, in units of 2^-48 turns
  std::vector<bool> has_left_;
  std::uint64_t stretch_ = 0;  // the step from which shares are to be added
};

}  // namespace fuzz
