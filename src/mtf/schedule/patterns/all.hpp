/// Every pattern that a row of options.def names. `make tables` writes this file.
#pragma once

#include "mtf/schedule/patterns/alternating.hpp"
#include "mtf/schedule/patterns/even.hpp"
#include "mtf/schedule/patterns/random.hpp"
#include "mtf/schedule/patterns/round_robin.hpp"
#include "mtf/schedule/patterns/sequential.hpp"
#include "mtf/schedule/patterns/shuffled.hpp"
