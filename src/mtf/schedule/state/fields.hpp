/// How the parts of a state become values and are read again: numbers without a bound, lists, enums.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mtf/message.hpp"
#include "mtf/schedule/enum_names.hpp"
#include "mtf/schedule/pattern.hpp"
#include "mtf/state/value.hpp"

namespace mtf {

/// Counts of steps, batches and passes in a state.
inline constexpr std::uint64_t kMaxCount = kMaxSteps - 1;
/// Indices of sources.
inline constexpr std::uint64_t kMaxIndex = (std::uint64_t{1} << 31) - 1;

// Natural numbers that have no bound, or aren't known, are None.
inline Value unbounded_or(std::uint64_t value) { return value == kUnbounded ? Value() : Value(value); }
inline Value unbounded_or(std::optional<std::uint64_t> value) { return value ? Value(*value) : Value(); }
inline std::optional<std::uint64_t> known_or_none(const Field& field) {
  return field.is_none() ? std::nullopt : std::optional(field.integer(kMaxCount));
}
inline std::uint64_t unbounded_or(const Field& field) {
  return field.is_none() ? kUnbounded : field.integer(kMaxCount);
}

template <class Range, class Make>
ValueList list_of(const Range& range, Make make) {
  ValueList out;
  out.reserve(std::size(range));
  for (const auto& item : range) {
    out.emplace_back(make(item));
  }
  return out;
}

template <class T, class Read>
std::vector<T> read_list(const Field& field, Read read) {
  std::vector<T> out;
  for (const Field& item : field.list()) {
    out.push_back(read(item));
  }
  return out;
}

template <NamedEnum Enum>
Enum read_enum(const Field& field) {
  if (const std::optional<Enum> member = find_member<Enum>(field.string())) {
    return *member;
  }
  field.fail(format_message("one of {}", list_names<Enum>()));
}

}  // namespace mtf
