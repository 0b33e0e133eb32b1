/// The errors of the core. Each message names the parameter, the rule, the position and the value.
#pragma once

#include <stdexcept>

namespace mtf {

/// Input that breaks a rule; thrown before anything is changed.
class ConfigError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A saved state that doesn't fit the object it is loaded into, or that is damaged. The object is unchanged.
class StateMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A file of a source that is missing, damaged or shorter than it was; the message begins with its path.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A call on an object that was closed, or that lives on in a forked child.
class Closed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace mtf
