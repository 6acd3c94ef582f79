// The tiles of AMX for a CPU without: eight of 16 rows of 64 bytes, as the kernels configure them.
#pragma once

#include "avx512_bf16.h"

#include <cstring>

#define __AMX_INT8__ 1
#define __AMX_BF16__ 1

namespace emulated {

struct Tile {
    alignas(64) uint8_t rows[16][64];
};

inline thread_local Tile tiles[8];

[[gnu::noinline]] inline void load_tile(int tile, const void* from, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tiles[tile].rows[r], static_cast<const char*>(from) + r * stride, 64);
}

[[gnu::noinline]] inline void clear_tile(int tile) { std::memset(tiles[tile].rows, 0, sizeof tiles[tile].rows); }

[[gnu::noinline]] inline void store_tile(int tile, void* to, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].rows[r], 64);
}

// total[m][n] += the sum over k and i of a[m][4 k + i] * b[k][4 n + i], unsigned times signed.
[[gnu::noinline]] inline void multiply_tiles(int total, int a, int b) {
    for (int m = 0; m < 16; ++m) {
        int32_t sums[16];
        std::memcpy(sums, tiles[total].rows[m], 64);
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n)
                for (int i = 0; i < 4; ++i)
                    sums[n] += int32_t(tiles[a].rows[m][4 * k + i]) * int8_t(tiles[b].rows[k][4 * n + i]);
        std::memcpy(tiles[total].rows[m], sums, 64);
    }
}

// total[m][n] += the sum over k and i of a[m][2 k + i] * b[k][2 n + i], all but the sums bf16.
[[gnu::noinline]] inline void multiply_bf16_tiles(int total, int a, int b) {
    for (int m = 0; m < 16; ++m) {
        float sums[16];
        std::memcpy(sums, tiles[total].rows[m], 64);
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n)
                for (int i = 0; i < 2; ++i)
                    sums[n] += widen_bf16(tiles[a].rows[m] + 4 * k + 2 * i) * widen_bf16(tiles[b].rows[k] + 4 * n + 2 * i);
        std::memcpy(tiles[total].rows[m], sums, 64);
    }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) (void)config
#define _tile_release() (void)0
#define _tile_zero emulated::clear_tile
#define _tile_loadd emulated::load_tile
#define _tile_stored emulated::store_tile
#define _tile_dpbusd emulated::multiply_tiles
#define _tile_dpbf16ps emulated::multiply_bf16_tiles
