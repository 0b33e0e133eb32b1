/// The closed sets of options and the names of their members: one row per member.
///
/// Parsing, printing, reading states and listing what is allowed all use these rows, so that a member is named once.
/// The names are the guide's, and those in states and in Python.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mtf {

enum class Strategy : std::uint8_t { round_robin, weighted, alternating, sequential };
enum class WeightedOrder : std::uint8_t { random, shuffled, even };
enum class EpochPolicy : std::uint8_t { sum_of_lengths, max_length, min_length, fixed_num_steps };
enum class Interpolation : std::uint8_t { step, linear };

/// What happened to a schedule at a step: `edit`: the user changed the mixture; `end_pass`: a source's pass ended after
/// `num_batches` batches; `extend_pass`: a source had more batches than its length.
enum class EventKind : std::uint8_t { edit, end_pass, extend_pass };

template <class Enum>
struct EnumRow {
  Enum member;
  std::string_view name;
};

/// The rows of an enum; specialised for each.
template <class Enum>
inline constexpr std::array<EnumRow<Enum>, 0> kEnumRows{};

template <>
inline constexpr auto kEnumRows<Strategy> = std::to_array<EnumRow<Strategy>>({
    {Strategy::round_robin, "ROUND_ROBIN"},
    {Strategy::weighted, "WEIGHTED"},
    {Strategy::alternating, "ALTERNATING"},
    {Strategy::sequential, "SEQUENTIAL"},
});

template <>
inline constexpr auto kEnumRows<WeightedOrder> = std::to_array<EnumRow<WeightedOrder>>({
    {WeightedOrder::random, "RANDOM"},
    {WeightedOrder::shuffled, "SHUFFLED"},
    {WeightedOrder::even, "EVEN"},
});

template <>
inline constexpr auto kEnumRows<EpochPolicy> = std::to_array<EnumRow<EpochPolicy>>({
    {EpochPolicy::sum_of_lengths, "SUM_OF_LENGTHS"},
    {EpochPolicy::max_length, "MAX_LENGTH"},
    {EpochPolicy::min_length, "MIN_LENGTH"},
    {EpochPolicy::fixed_num_steps, "FIXED_NUM_STEPS"},
});

template <>
inline constexpr auto kEnumRows<Interpolation> = std::to_array<EnumRow<Interpolation>>({
    {Interpolation::step, "STEP"},
    {Interpolation::linear, "LINEAR"},
});

template <>
inline constexpr auto kEnumRows<EventKind> = std::to_array<EnumRow<EventKind>>({
    {EventKind::edit, "edit"},
    {EventKind::end_pass, "end_pass"},
    {EventKind::extend_pass, "extend_pass"},
});

/// An enum that has rows.
template <class Enum>
concept NamedEnum = (kEnumRows<Enum>.size() > 0);

/// The member's name; empty for a value that is no member.
template <NamedEnum Enum>
[[nodiscard]] constexpr std::string_view name_of(Enum member) noexcept {
  for (const EnumRow<Enum>& row : kEnumRows<Enum>) {
    if (row.member == member) {
      return row.name;
    }
  }
  return {};
}

/// The member of that name, if there is one.
template <NamedEnum Enum>
[[nodiscard]] constexpr std::optional<Enum> find_member(std::string_view name) noexcept {
  for (const EnumRow<Enum>& row : kEnumRows<Enum>) {
    if (row.name == name) {
      return row.member;
    }
  }
  return std::nullopt;
}

/// All names, separated by commas: for messages.
template <NamedEnum Enum>
[[nodiscard]] std::string list_names() {
  std::string names;
  for (const EnumRow<Enum>& row : kEnumRows<Enum>) {
    names += names.empty() ? "" : ", ";
    names += row.name;
  }
  return names;
}

}  // namespace mtf
