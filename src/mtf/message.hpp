/// Messages of errors: text with a {} for each value, as std::format has it (which the compilers in use don't have
/// yet).
#pragma once

#include <locale>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace mtf {

namespace detail {

template <class Value>
std::string shown(const Value& value) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << value;
  return std::move(out).str();
}

inline std::string shown(const std::string& value) { return value; }
inline std::string shown(std::string_view value) { return std::string(value); }
inline std::string shown(const char* value) { return value; }

}  // namespace detail

/// `text` with each {} replaced by the next value, written as in the C locale: integers in full, doubles in up to six
/// digits. There are as many {} as values.
template <class... Values>
[[nodiscard]] std::string format_message(std::string_view text, const Values&... values) {
  std::string message;
  const auto append_next = [&](const std::string& value) {
    const std::size_t hole = text.find("{}");
    message += text.substr(0, hole);
    message += value;
    text.remove_prefix(hole + 2);
  };
  (append_next(detail::shown(values)), ...);
  message += text;
  return message;
}

}  // namespace mtf
