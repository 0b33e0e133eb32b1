/// Plain data: what states are made of between the objects that own them and their two forms, JSON and bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace mtf {

class Value;
using ValueList = std::vector<Value>;
/// Fields in the order in which they were written; names are unique.
using ValueMap = std::vector<std::pair<std::string, Value>>;

/// Lists and fields lie at most this deep inside each other in what is read.
inline constexpr int kMaxDepth = 32;

/// None, a truth value, a natural number, a double, a string, a list or named fields.
class Value {
 public:
  using Data = std::variant<std::monostate, bool, std::uint64_t, double, std::string, ValueList, ValueMap>;

  Value() = default;
  Value(bool value) : data_(value) {}                      // NOLINT(google-explicit-constructor)
  Value(std::uint64_t value) : data_(value) {}             // NOLINT(google-explicit-constructor)
  Value(double value) : data_(value) {}                    // NOLINT(google-explicit-constructor)
  Value(std::string value) : data_(std::move(value)) {}    // NOLINT(google-explicit-constructor)
  Value(const char* value) : data_(std::string(value)) {}  // NOLINT(google-explicit-constructor)
  Value(ValueList value) : data_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Value(ValueMap value) : data_(std::move(value)) {}       // NOLINT(google-explicit-constructor)

  [[nodiscard]] const Data& data() const noexcept { return data_; }
  [[nodiscard]] bool is_none() const noexcept { return std::holds_alternative<std::monostate>(data_); }

  friend bool operator==(const Value&, const Value&) = default;

 private:
  Data data_;
};

/// Reads a Value and knows where it is, so that every error names the field.
class Field {
 public:
  Field(const Value& value, std::string path) : value_(&value), path_(std::move(path)) {}

  [[nodiscard]] bool is_none() const noexcept { return value_->is_none(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// Each of these throws StateMismatch when the value is of another kind or outside of [0, max].
  [[nodiscard]] bool boolean() const;
  [[nodiscard]] std::uint64_t integer(std::uint64_t max) const;
  [[nodiscard]] double number() const;
  [[nodiscard]] const std::string& string() const;
  [[nodiscard]] std::vector<Field> list() const;
  /// The field called `name`; StateMismatch when there is none.
  [[nodiscard]] Field operator[](std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const;

  [[noreturn]] void fail(const std::string& rule) const;

 private:
  const Value* value_;
  std::string path_;
};

}  // namespace mtf
