// `padless::linear_int8` over packed weights, compiled by itself: linear_int8.cpp.
#pragma once

#include "linear.h"

namespace padless {

// `call.panels`: all of a packed weight. Of the rows `call.x` each is quantised by its own range, or is quantised already.
void run_linear_int8(const LinearCall& call);

}  // namespace padless
