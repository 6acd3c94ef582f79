// uint8 rows times int8 panels, exact in int32: see gemm.h.
#pragma once

#include "gemm_tiles.h"

namespace padless {

#if defined(__AMX_INT8__)
using Int8Gemm = TileGemm<uint8_t, int8_t, int32_t>;
#else
// total += four unsigned bytes times four signed ones, in each lane. In assembly: GCC 12 puts two moves of registers around
// each use of the intrinsic, and the sums of the loop below on the stack (46 instructions instead of 110).
#if defined(__AVX512VNNI__) && !defined(PADLESS_DPBUSD)
#define PADLESS_DPBUSD(total, four, weight) \
    asm("vpdpbusd %[w], %[x], %[sum]" : [sum] "+v"(total) : [x] "v"(four), [w] "v"(weight))
#endif

#if !defined(__AVX512VNNI__)
// One row's 8 bytes times 8 weights of 16 columns: `weight_` are those of the first 4 bytes, `later` those of the others.
// In assembly, because GCC 12 runs out of registers over the intrinsics: 1.4 times as slow.
inline void add_products(
    __m256i& low, __m256i& high, const uint8_t* x, __m256i weight_low, __m256i weight_high, const int8_t* later,
    __m256i ones) {
    asm("vpbroadcastd %[first], %%ymm12\n\t"
        "vpbroadcastd %[second], %%ymm13\n\t"
        "vpmaddubsw %[weight_low], %%ymm12, %%ymm14\n\t"
        "vpmaddubsw %[later_low], %%ymm13, %%ymm15\n\t"
        "vpmaddubsw %[weight_high], %%ymm12, %%ymm12\n\t"
        "vpmaddubsw %[later_high], %%ymm13, %%ymm13\n\t"
        "vpaddw %%ymm15, %%ymm14, %%ymm14\n\t"
        "vpaddw %%ymm13, %%ymm12, %%ymm12\n\t"
        "vpmaddwd %[ones], %%ymm14, %%ymm14\n\t"
        "vpmaddwd %[ones], %%ymm12, %%ymm12\n\t"
        "vpaddd %%ymm14, %[low], %[low]\n\t"
        "vpaddd %%ymm12, %[high], %[high]"
        : [low] "+x"(low), [high] "+x"(high)
        : [first] "m"(*reinterpret_cast<const int32_t*>(x)), [second] "m"(*reinterpret_cast<const int32_t*>(x + 4)),
          [weight_low] "x"(weight_low), [weight_high] "x"(weight_high), [ones] "x"(ones),
          [later_low] "m"(*reinterpret_cast<const __m256i_u*>(later)),
          [later_high] "m"(*reinterpret_cast<const __m256i_u*>(later + 32))
        : "xmm12", "xmm13", "xmm14", "xmm15");
}
#endif

// uint8 x int8 -> int32, exact.
struct Int8Gemm {
    using Input = uint8_t;
    using Weight = int8_t;
    using Sum = int32_t;
#if defined(__AVX512VNNI__)
    static constexpr int ROWS = 12, PANELS = 2;
#else
    static constexpr int ROWS = 4, PANELS = 1;
#endif
    static constexpr int64_t GRAIN = 1;
    static constexpr int64_t DEPTH = 1536;
    static constexpr int64_t PADDING = 64;
    static constexpr int64_t WIDEN_FROM = 0;

    static void begin() {}
    static void end() {}

    template <int ROWS, int PANELS>
    static void multiply(const uint8_t* x, int64_t x_stride, const int8_t* panels,
                         [[maybe_unused]] int64_t panel_stride, int64_t depth, bool add, int32_t* sums,
                         [[maybe_unused]] int64_t sums_stride, Ahead ahead) {
#if defined(__AVX512VNNI__)
        __m512i total[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p)
                total[r][p] = add ? load_raw<__m512i>(sums + p * sums_stride + r * PANEL) : _mm512_setzero_si512();
        for (int64_t k = 0; k < depth; k += 4) {
            ahead.fetch();
            __m512i weight[PANELS];
            for (int p = 0; p < PANELS; ++p) weight[p] = load_raw<__m512i>(panels + p * panel_stride + k * PANEL);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const __m512i four = _mm512_set1_epi32(load_raw<int32_t>(x + r * x_stride + k));
                for (int p = 0; p < PANELS; ++p) PADLESS_DPBUSD(total[r][p], four, weight[p]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p) store_raw(sums + p * sums_stride + r * PANEL, total[r][p]);
#else
        static_assert(PANELS == 1 && ROWS <= 4);
        // maddubs adds two products of bytes into 16 bits, and two of its results are added there before they are
        // widened: 3 multiplications per 64 products. runtime/quantization/weights.py keeps any four weights that meet
        // in one 16-bit lane small enough for that never to overflow (`overflow_free`).
        // Named sums stay in registers, arrays do not.
        const uint8_t *x0 = x, *x1 = x + x_stride, *x2 = x + 2 * x_stride, *x3 = x + 3 * x_stride;
        __m256i low0{}, high0{}, low1{}, high1{}, low2{}, high2{}, low3{}, high3{};
        const __m256i ones = _mm256_set1_epi16(1);
        for (int64_t k = 0; k < depth; k += 8, panels += 8 * PANEL) {
            ahead.fetch();
            ahead.fetch();
            const __m256i low = load_raw<__m256i>(panels), high = load_raw<__m256i>(panels + 32);
            add_products(low0, high0, x0 + k, low, high, panels + 64, ones);
            if constexpr (ROWS > 1) add_products(low1, high1, x1 + k, low, high, panels + 64, ones);
            if constexpr (ROWS > 2) add_products(low2, high2, x2 + k, low, high, panels + 64, ones);
            if constexpr (ROWS > 3) add_products(low3, high3, x3 + k, low, high, panels + 64, ones);
        }
        const __m256i total[4][2] = {{low0, high0}, {low1, high1}, {low2, high2}, {low3, high3}};
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < 2; ++v) {
                int32_t* to = sums + r * PANEL + v * 8;
                store_raw(to, add ? _mm256_add_epi32(load_raw<__m256i>(to), total[r][v]) : total[r][v]);
            }
#endif
    }
};
#endif

}  // namespace padless
