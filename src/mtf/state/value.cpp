#include "mtf/state/value.hpp"

#include "mtf/error.hpp"
#include "mtf/message.hpp"

namespace mtf {

namespace {

std::string describe(const Value& value) {
  struct Visitor {
    std::string operator()(std::monostate) const { return "None"; }
    std::string operator()(bool v) const { return v ? "True" : "False"; }
    std::string operator()(std::uint64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return std::to_string(v); }
    std::string operator()(const std::string& v) const { return "'" + v.substr(0, 40) + "'"; }
    std::string operator()(const ValueList& v) const { return "a list of " + std::to_string(v.size()); }
    std::string operator()(const ValueMap&) const { return "a mapping"; }
  };
  return std::visit(Visitor{}, value.data());
}

}  // namespace

void Field::fail(const std::string& rule) const {
  throw StateMismatch(format_message("{} must be {}, got {}", path_, rule, describe(*value_)));
}

bool Field::boolean() const {
  if (const auto* value = std::get_if<bool>(&value_->data())) {
    return *value;
  }
  fail("True or False");
}

std::uint64_t Field::integer(std::uint64_t max) const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_->data()); value != nullptr && *value <= max) {
    return *value;
  }
  fail(format_message("an integer in [0, {}]", max));
}

double Field::number() const {
  if (const auto* value = std::get_if<double>(&value_->data())) {
    return *value;
  }
  // A JSON writer may drop the fraction of a whole number.
  if (const auto* value = std::get_if<std::uint64_t>(&value_->data())) {
    return static_cast<double>(*value);
  }
  fail("a number");
}

const std::string& Field::string() const {
  if (const auto* value = std::get_if<std::string>(&value_->data())) {
    return *value;
  }
  fail("a string");
}

std::vector<Field> Field::list() const {
  const auto* items = std::get_if<ValueList>(&value_->data());
  if (items == nullptr) {
    fail("a list");
  }
  std::vector<Field> fields;
  fields.reserve(items->size());
  for (std::size_t i = 0; i < items->size(); ++i) {
    fields.emplace_back((*items)[i], path_ + "[" + std::to_string(i) + "]");
  }
  return fields;
}

bool Field::has(std::string_view name) const {
  const auto* fields = std::get_if<ValueMap>(&value_->data());
  if (fields == nullptr) {
    return false;
  }
  for (const auto& field : *fields) {
    if (field.first == name) {
      return true;
    }
  }
  return false;
}

Field Field::operator[](std::string_view name) const {
  const auto* fields = std::get_if<ValueMap>(&value_->data());
  if (fields == nullptr) {
    fail("a mapping");
  }
  for (const auto& [key, value] : *fields) {
    if (key == name) {
      return {value, path_ + "." + key};
    }
  }
  throw StateMismatch(format_message("{} has no field '{}'", path_, name));
}

}  // namespace mtf
