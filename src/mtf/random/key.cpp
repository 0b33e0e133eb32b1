#include "mtf/random/key.hpp"

namespace mtf {

// Keys are part of the state format: these values may never change.
static_assert(fold_in(Key{0}, 0) != fold_in(Key{0}, 0, KeyUse::fold_name));

}  // namespace mtf
