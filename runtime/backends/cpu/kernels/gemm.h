// The innermost loops of linear layers: a few rows of x times one or two panels of weights, into sums [panel][row][16].
//
// A panel is 16 columns of the weight, laid out so that one load fetches what one instruction needs:
//     fp32   [k][16]
//     bf16   [k / 2][16][2], k padded to a multiple of 32
//     int8   [k / 4][16][4], k padded to a multiple of 64
// which is the order of AVX2's and AVX512's dot products of pairs and fours, and of a tile of AMX. This file has fp32;
// gemm_bf16.h and gemm_int8.h have the others.
#pragma once

#include <algorithm>

#include "rows.h"

namespace padless {

constexpr int64_t PANEL = 16;

// Memory that is fetched while a panel is multiplied: `step` bytes of it with each 64 bytes of the panel.
struct Ahead {
    const char* next;
    int64_t step;

    void fetch() {
        __builtin_prefetch(next);
        next += step;
    }
};

// fp32: ROWS x PANELS panels of fused multiply-adds, in the order of k for every element.
struct Fp32Gemm {
    using Input = float;
    using Weight = float;
    using Sum = float;
#if defined(__AVX512F__)
    static constexpr int ROWS = 12, PANELS = 2;
#elif defined(__AVX2__) || defined(__aarch64__)  // which has twice as many registers
    static constexpr int ROWS = 6, PANELS = 1;
#else
    static constexpr int ROWS = 3, PANELS = 1;
#endif
    static constexpr int64_t GRAIN = 1;  // rows that cost no more than fewer of them
    // Columns of x taken at a time: a panel's part stays in the first-level cache.
    static constexpr int64_t DEPTH = 256;
    static constexpr int64_t PADDING = 1;
    static constexpr int64_t WIDEN_FROM = 0;

    static void begin() {}
    static void end() {}

    template <int ROWS, int PANELS>
    static void multiply(const float* x, int64_t x_stride, const float* panels, int64_t panel_stride, int64_t depth,
                         bool add, float* sums, int64_t sums_stride, Ahead ahead) {
        constexpr int VECS = PANEL / LANES * PANELS, PER_PANEL = PANEL / LANES;
        Vec total[ROWS][VECS];
        const auto place = [=](int r, int v) {
            return sums + v / PER_PANEL * sums_stride + r * PANEL + v % PER_PANEL * LANES;
        };
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) total[r][v] = add ? load(place(r, v)) : Vec{};
        for (int64_t k = 0; k < depth; ++k) {
            if constexpr (ROWS > 1) ahead.fetch();  // a single row asks for memory fast enough
            Vec weight[VECS];
            for (int v = 0; v < VECS; ++v)
                weight[v] = load(panels + v / PER_PANEL * panel_stride + k * PANEL + v % PER_PANEL * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const Vec value = broadcast(x[r * x_stride + k]);
                for (int v = 0; v < VECS; ++v) total[r][v] += value * weight[v];
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) store(place(r, v), total[r][v]);
    }
};

}  // namespace padless
