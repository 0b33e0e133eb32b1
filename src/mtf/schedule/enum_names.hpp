/// The closed sets of options and the names of their members, from the rows of options.def.
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

enum class Strategy : std::uint8_t {
#define MTF_STRATEGY(member, name, pattern) member,
#define MTF_STRATEGY_WITH_ORDERS(member, name) member,
#include "mtf/schedule/options.def"
};

enum class WeightedOrder : std::uint8_t {
#define MTF_WEIGHTED_ORDER(member, name, pattern) member,
#include "mtf/schedule/options.def"
};

enum class EpochPolicy : std::uint8_t {
#define MTF_EPOCH_POLICY(member, name) member,
#include "mtf/schedule/options.def"
};

enum class Interpolation : std::uint8_t {
#define MTF_INTERPOLATION(member, name) member,
#include "mtf/schedule/options.def"
};

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
#define MTF_STRATEGY(member, name, pattern) {Strategy::member, #name},
#define MTF_STRATEGY_WITH_ORDERS(member, name) {Strategy::member, #name},
#include "mtf/schedule/options.def"
});

template <>
inline constexpr auto kEnumRows<WeightedOrder> = std::to_array<EnumRow<WeightedOrder>>({
#define MTF_WEIGHTED_ORDER(member, name, pattern) {WeightedOrder::member, #name},
#include "mtf/schedule/options.def"
});

template <>
inline constexpr auto kEnumRows<EpochPolicy> = std::to_array<EnumRow<EpochPolicy>>({
#define MTF_EPOCH_POLICY(member, name) {EpochPolicy::member, #name},
#include "mtf/schedule/options.def"
});

template <>
inline constexpr auto kEnumRows<Interpolation> = std::to_array<EnumRow<Interpolation>>({
#define MTF_INTERPOLATION(member, name) {Interpolation::member, #name},
#include "mtf/schedule/options.def"
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
