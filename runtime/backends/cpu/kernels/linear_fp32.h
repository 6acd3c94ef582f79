// What `Linear` multiplies in fp32: rows as they are, or widened from bf16. Layers are compiled in linear_act.cpp.
#pragma once

#include "linear.h"

namespace padless {

struct Fp32Source {
    const LinearCall& call;
    int64_t stride;
    bool is_ready;

    explicit Fp32Source(const LinearCall& call)
        : call(call), stride(call.x.kind == FP32 ? call.x.stride : call.depth), is_ready(call.x.kind == FP32) {}

    const float* ready(int64_t row) const { return call.x.fp32(row); }

    void prepare(int64_t first, int64_t rows, float* prepared) const {
        for (int64_t r = 0; r < rows; ++r) copy_row(call.x, first + r, 0, call.depth, prepared + r * stride);
    }

    auto scaler(const float*) const {
        return [](const float* sums, int64_t) { return load(sums); };
    }
};

void run_linear_fp32(const LinearCall& call);

}  // namespace padless
