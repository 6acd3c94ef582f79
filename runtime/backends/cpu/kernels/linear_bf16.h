// `padless::linear_act` over packed bf16 weights, compiled by itself: linear_bf16.cpp.
#pragma once

#include "linear.h"

namespace padless {

void run_linear_bf16(const LinearCall& call);

}  // namespace padless
