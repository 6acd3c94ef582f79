// Rotary positions (Su et al., 2021): how one head of a token is turned.
#pragma once

#include "kernel.h"
#include "simd.h"

namespace padless {

inline void turn(Vec& first, Vec& second, Vec cosine, Vec sine) {
    const Vec before = first;
    first = before * cosine - second * sine;
    second = second * cosine + before * sine;
}

// The first 2 * half numbers of a row, each together with the one `half` further on. `angles`: half
// cosines, half sines.
inline void rotate_row(float* row, const float* angles, int64_t half) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        Vec first = load(row + i), second = load(row + half + i);
        turn(first, second, load(angles + i), load(angles + half + i));
        store(row + i, first);
        store(row + half + i, second);
    }
    if (i < half) {
        Vec first = load_some(row + i, half - i), second = load_some(row + half + i, half - i);
        turn(first, second, load_some(angles + i, half - i), load_some(angles + half + i, half - i));
        store_some(row + i, first, half - i);
        store_some(row + half + i, second, half - i);
    }
}

// What the heads of a batch's tokens are turned by.
struct Rotary {
    const int64_t* positions;  // [num_tokens]
    const float* table;        // [num_positions, dim]; may be null: they stay
    int64_t num_positions, dim;

    Rotary(const Tensor& position_ids, const Tensor& rotary)
        : positions(data<int64_t>(position_ids)),
          table(data<float>(rotary)),
          num_positions(rotary.sizes[0]),
          dim(rotary.sizes[1]) {}

    void turn_row(int64_t token, float* row) const {
        if (table) rotate_row(row, table + positions[token] * dim, dim / 2);
    }

    int64_t count_wrong(int64_t num_tokens) const {
        int64_t wrong = 0;
        for (int64_t token = 0; table && token < num_tokens; ++token) wrong += is_out(positions[token], num_positions);
        return wrong;
    }
};

}  // namespace padless
