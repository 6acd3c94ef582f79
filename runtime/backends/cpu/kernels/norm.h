// LayerNorm and RMSNorm of one row of floats.
#pragma once

#include "rows.h"

namespace padless {

// In place, with mean and variance by two passes: no cancellation where the mean is large. `bias` may be null.
inline void normalise_row(float* row, int64_t width, const float* weight, const float* bias, float eps, bool is_rms) {
    float mean = 0;
    if (!is_rms) {
        Vec total{};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) total += load(row + i);
        if (i < width) total += load_some(row + i, width - i);
        mean = sum(total) / float(width);
    }
    Vec squares{};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec centred = load(row + i) - mean;
        squares += centred * centred;
    }
    if (i < width) {
        const IntVec is_there = lane_numbers() < int32_t(width - i);
        const Vec centred = select(is_there, load_some(row + i, width - i) - mean, Vec{});
        squares += centred * centred;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / float(width) + eps);
    for (i = 0; i + LANES <= width; i += LANES) {
        Vec value = (load(row + i) - mean) * scale * load(weight + i);
        if (bias) value += load(bias + i);
        store(row + i, value);
    }
    for (; i < width; ++i) row[i] = (row[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
}

}  // namespace padless
