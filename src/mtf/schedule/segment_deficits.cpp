// EVEN and SHUFFLED: what each source is ahead or behind when a pattern begins, and when the next one does.
#include <algorithm>
#include <numeric>

#include "mtf/schedule/segment.hpp"

namespace mtf {

namespace {

using SignedWide = __int128;

/// A source that is drawn again only after another pass of its own has begun: removed, or exhausted.
/// `drops_out` is that of its MixtureSpec, which looks at every source.
bool is_gone(const Breakpoint& breakpoint, std::size_t source, bool drops_out) {
  const bool is_exhausted = drops_out && breakpoint.sources[source].limit == 0;
  return is_exhausted || !breakpoint.spec->sources[source].present;
}

/// numerator / denominator turns in units of 2^-kDeficitBits, rounded down; both are below 2^94.
SignedWide deficit_units(SignedWide numerator, SignedWide denominator) {
  constexpr int kHalf = kDeficitBits / 2;
  const SignedWide high = ((numerator % denominator) << kHalf) / denominator;
  const SignedWide low = ((((numerator % denominator) << kHalf) % denominator) << kHalf) / denominator;
  return (numerator / denominator << kDeficitBits) + (high << kHalf) + low;
}

}  // namespace

/// EVEN, SHUFFLED: each slot's deficit at the pattern's beginning. Sources that are gone for good leave
/// theirs to the others, in proportion to their weights; a source of weight 0 keeps it.
void Segment::settle_deficits() {
  const MixtureConfig& config = breakpoint_.spec->config;
  if (!breakpoint_.carries || config.strategy != Strategy::weighted || config.order == WeightedOrder::random) {
    breakpoint_.continues = false;
    return;
  }
  SignedWide left_behind = 0;
  std::vector<bool> is_active(breakpoint_.sources.size());
  std::vector<SignedWide> inherited(breakpoint_.sources.size());
  const std::vector<bool> are_spent = spent_sources();
  for (const std::int32_t source : active_) {
    is_active[static_cast<std::size_t>(source)] = true;
  }
  const bool drops_out = breakpoint_.spec->drops_out();
  for (std::size_t i = 0; i < is_active.size(); ++i) {
    if (is_active[i] || !is_gone(breakpoint_, i, drops_out)) {
      continue;
    }
    is_certain_ = is_certain_ && breakpoint_.sources[i].deficit == 0;
    const auto heir = are_spent[i] ? breakpoint_.spec->find_heir(i, are_spent) : std::nullopt;
    (heir && is_active[*heir] ? inherited[*heir] : left_behind) += breakpoint_.sources[i].deficit;
  }
  // Above 0 wherever there is a slot, whose weight is.
  const SignedWide total =
      std::max(SignedWide{1}, std::accumulate(slot_units_.begin(), slot_units_.end(), SignedWide{0}));
  for (std::size_t slot = 0; slot < active_.size(); ++slot) {
    const auto i = static_cast<std::size_t>(active_[slot]);
    const SignedWide deficit = breakpoint_.sources[i].deficit + inherited[i] + left_behind * slot_units_[slot] / total;
    slot_deficits_.push_back(static_cast<std::int64_t>(std::clamp<SignedWide>(deficit, -kMaxDeficit, kMaxDeficit)));
  }
}

/// Steps since the pattern began after which slots have left, and which, in order.
std::vector<std::pair<std::uint64_t, std::size_t>> Segment::exhaustions(std::span<const std::uint64_t> drawn) const {
  std::vector<std::pair<std::uint64_t, std::size_t>> out;
  if (!breakpoint_.spec->drops_out()) {
    return out;
  }
  for (std::size_t slot = 0; slot < active_.size(); ++slot) {
    if (drawn[slot] == breakpoint_.sources[static_cast<std::size_t>(active_[slot])].limit) {
      const auto last = [&](const auto& p) { return p.position(static_cast<std::int32_t>(slot), drawn[slot] - 1); };
      out.emplace_back(std::visit(last, *pattern_) + 1, slot);
    }
  }
  std::ranges::sort(out);
  return out;
}

/// Writes each source's deficit at `step`, for a pattern that begins there; the counts are in `breakpoint`.
void Segment::carry_deficits(Breakpoint& breakpoint, std::uint64_t step) const {
  const bool drops_out = breakpoint_.spec->drops_out();
  for (std::size_t i = 0; i < breakpoint.sources.size(); ++i) {
    breakpoint.sources[i].deficit =
        slot_deficits_.empty() || is_gone(breakpoint_, i, drops_out) ? 0 : breakpoint_.sources[i].deficit;
  }
  breakpoint.continues = false;
  breakpoint.num_in_block = 0;
  if (slot_deficits_.empty()) {
    return;
  }
  const std::uint64_t elapsed = step - breakpoint_.origin;
  breakpoint.continues = breakpoint_.continues || elapsed > 0;
  if (const auto* shuffled = std::get_if<WeightedShuffled>(&*pattern_)) {
    breakpoint.num_in_block = shuffled->num_in_block(elapsed);
  }
  std::vector<std::uint64_t> drawn;
  std::vector<SignedWide> deficits(slot_deficits_.begin(), slot_deficits_.end());
  for (const std::int32_t source : active_) {
    drawn.push_back(breakpoint.sources[static_cast<std::size_t>(source)].count -
                    breakpoint_.sources[static_cast<std::size_t>(source)].origin_count);
  }
  const auto burst = static_cast<SignedWide>(breakpoint_.spec->config.burst);
  SignedWide total = std::accumulate(slot_units_.begin(), slot_units_.end(), SignedWide{0});
  std::vector<bool> has_left(active_.size());
  std::uint64_t begin = 0;
  const auto add_shares = [&](std::uint64_t end) {
    for (std::size_t slot = 0; slot < deficits.size() && end > begin; ++slot) {
      if (!has_left[slot]) {
        deficits[slot] += deficit_units(SignedWide{end - begin} * slot_units_[slot], total * burst);
      }
    }
    begin = end;
  };
  for (const auto& [end, slot] : exhaustions(drawn)) {
    add_shares(std::min(end, elapsed));
    has_left[slot] = true;
    total -= slot_units_[slot];
  }
  add_shares(elapsed);
  for (std::size_t slot = 0; slot < deficits.size(); ++slot) {
    const SignedWide deficit = deficits[slot] - deficit_units(SignedWide{drawn[slot]}, burst);
    breakpoint.sources[static_cast<std::size_t>(active_[slot])].deficit =
        static_cast<std::int64_t>(std::clamp<SignedWide>(deficit, -kMaxDeficit, kMaxDeficit));
  }
}

}  // namespace mtf
