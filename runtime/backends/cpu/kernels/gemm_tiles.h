// Micro-kernels of AMX, for bytes and for bf16: 32 rows x 2 panels are four tiles of 16 x 16 sums. All tiles have 16 rows of
// 64 bytes, so the configuration is loaded once per block of rows.
#pragma once

#include "gemm.h"

#if defined(__AMX_INT8__)

namespace padless {

// The numbers of tiles are part of the instruction.
#define PADLESS_MULTIPLY_TILES(sums, x, weight) \
    do {                                        \
        if constexpr (sizeof(Input) == 1)       \
            _tile_dpbusd(sums, x, weight);      \
        else                                    \
            _tile_dpbf16ps(sums, x, weight);    \
    } while (false)

template <class InputType, class WeightType, class SumType>
struct TileGemm {
    using Input = InputType;
    using Weight = WeightType;
    using Sum = SumType;
    static constexpr int ROWS = 32, PANELS = 2;
    static constexpr int64_t GRAIN = 16;
    static constexpr int64_t STEP = 64 / sizeof(Input);  // of k, in one tile
    static constexpr int64_t DEPTH = 4096 / sizeof(Input);
    static constexpr int64_t PADDING = STEP;
    static constexpr int64_t WIDEN_FROM = 0;
    static constexpr int TILE = 16;

    static void begin() {
        alignas(64) uint8_t config[64] = {};
        config[0] = 1;  // the only palette there is
        for (int tile = 0; tile < 8; ++tile) {
            config[16 + 2 * tile] = 64;     // bytes of a row, 16 bits
            config[48 + tile] = TILE;       // rows
        }
        _tile_loadconfig(config);
    }

    static void end() { _tile_release(); }

    // 16 rows of 64 bytes for a tile: where fewer are left, a copy with rows of 0 behind them.
    static const Input* find_rows(const Input* x, int64_t x_stride, int rows, Input* copy, int64_t& stride) {
        stride = x_stride;
        if (rows >= TILE) return x;
        stride = STEP;
        for (int r = 0; r < rows; ++r) std::memcpy(copy + r * STEP, x + r * x_stride, 64);
        return copy;
    }

    template <int ROWS, int PANELS>
    static void multiply(const Input* x, int64_t x_stride, const Weight* panels, int64_t panel_stride, int64_t depth,
                         bool add, Sum* sums, int64_t sums_stride, Ahead) {
        constexpr int64_t ROW_BYTES = PANEL * sizeof(Sum);
        alignas(64) Input copy[TILE * STEP] = {};
        Sum *sums1 = sums + sums_stride, *lower = sums + TILE * PANEL, *lower1 = sums1 + TILE * PANEL;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        if (add) {
            _tile_loadd(0, sums, ROW_BYTES);
            if constexpr (PANELS > 1) _tile_loadd(1, sums1, ROW_BYTES);
            if constexpr (ROWS > TILE) _tile_loadd(2, lower, ROW_BYTES);
            if constexpr (ROWS > TILE && PANELS > 1) _tile_loadd(3, lower1, ROW_BYTES);
        }
        for (int64_t k = 0; k < depth; k += STEP) {
            int64_t stride;
            const Input* rows = find_rows(x + k, x_stride, ROWS, copy, stride);
            _tile_loadd(4, rows, stride * sizeof(Input));
            _tile_loadd(6, panels + k * PANEL, 64);
            PADLESS_MULTIPLY_TILES(0, 4, 6);
            if constexpr (PANELS > 1) {
                _tile_loadd(7, panels + panel_stride + k * PANEL, 64);
                PADLESS_MULTIPLY_TILES(1, 4, 7);
            }
            if constexpr (ROWS > TILE) {
                rows = find_rows(x + TILE * x_stride + k, x_stride, ROWS - TILE, copy, stride);
                _tile_loadd(5, rows, stride * sizeof(Input));
                PADLESS_MULTIPLY_TILES(2, 5, 6);
                if constexpr (PANELS > 1) PADLESS_MULTIPLY_TILES(3, 5, 7);
            }
        }
        // Whole tiles: there is room for them behind the last row, see BLOCK_ROWS.
        _tile_stored(0, sums, ROW_BYTES);
        if constexpr (PANELS > 1) _tile_stored(1, sums1, ROW_BYTES);
        if constexpr (ROWS > TILE) _tile_stored(2, lower, ROW_BYTES);
        if constexpr (ROWS > TILE && PANELS > 1) _tile_stored(3, lower1, ROW_BYTES);
    }
};

}  // namespace padless

#endif
