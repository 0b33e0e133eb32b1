/// Mixtures in a state: its `setups`, each written once, and referred to by index.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "mtf/schedule/mixture_spec.hpp"
#include "mtf/state/value.hpp"

namespace mtf {

[[nodiscard]] Value to_value(const MixtureConfig& config);
[[nodiscard]] Value to_value(const MixtureSpec& spec);
/// Largest numbers of passes, and what happens after them.
[[nodiscard]] ValueMap to_value_of_caps(const MixtureSpec& spec);

/// Throws StateMismatch, naming the field, for a mixture that no schedule could have.
[[nodiscard]] std::shared_ptr<const MixtureSpec> read_spec(const Field& field);

/// The specs of a state, each once; breakpoints and events refer to them by index.
class SpecTable {
 public:
  [[nodiscard]] std::uint64_t index_of(const MixtureSpec& spec);
  [[nodiscard]] ValueList values() const;

 private:
  std::vector<const MixtureSpec*> specs_;
};

using Specs = std::vector<std::shared_ptr<const MixtureSpec>>;

[[nodiscard]] std::shared_ptr<const MixtureSpec> read_spec_index(const Field& field, const Specs& specs);

}  // namespace mtf
