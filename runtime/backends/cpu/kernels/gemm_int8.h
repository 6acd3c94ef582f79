// uint8 rows times int8 panels, exact in int32: see gemm.h.
#pragma once

#include "gemm_tiles.h"

namespace padless {

#if defined(__AMX_INT8__)
using Int8Gemm = TileGemm<uint8_t, int8_t, int32_t>;
#else
struct Int8GemmTypes {
    using Input = uint8_t;
    using Weight = int8_t;
    using Sum = int32_t;
    static constexpr int64_t GRAIN = 1;
    static constexpr int64_t PADDING = 64;
    static constexpr int64_t WIDEN_FROM = 0;

    static void begin() {}
    static void end() {}
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// total += four unsigned bytes times four signed ones, in each lane. In assembly: GCC 12 puts two moves of registers around
// each use of the intrinsic, and the sums of the loop below on the stack (46 instructions instead of 110).
#if defined(PADLESS_DPBUSD)  // an emulation of it
#elif defined(__AVX512VNNI__)
#define PADLESS_DPBUSD(total, four, weight) \
    asm("vpdpbusd %[w], %[x], %[sum]" : [sum] "+v"(total) : [x] "v"(four), [w] "v"(weight))
#else
#define PADLESS_DPBUSD(total, four, weight) \
    asm("%{vex%} vpdpbusd %[w], %[x], %[sum]" : [sum] "+x"(total) : [x] "x"(four), [w] "x"(weight))
#endif

struct Int8Gemm : Int8GemmTypes {
    static constexpr int ROWS = LANES == 16 ? 12 : 6, PANELS = LANES / 8;
    static constexpr int64_t DEPTH = 1536;

    template <int ROWS, int PANELS>
    static void multiply(const uint8_t* x, int64_t x_stride, const int8_t* panels, int64_t panel_stride, int64_t depth,
                         bool add, int32_t* sums, int64_t sums_stride, Ahead ahead) {
        constexpr int VECS = PANEL / LANES * PANELS, PER_PANEL = PANEL / LANES;
        IntVec total[ROWS][VECS];
        const auto place = [=](int r, int v) {
            return sums + v / PER_PANEL * sums_stride + r * PANEL + v % PER_PANEL * LANES;
        };
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) total[r][v] = add ? load_raw<IntVec>(place(r, v)) : IntVec{};
        for (int64_t k = 0; k < depth; k += 4) {
            ahead.fetch();
            IntVec weight[VECS];
            for (int v = 0; v < VECS; ++v)
                weight[v] = load_raw<IntVec>(
                    panels + v / PER_PANEL * panel_stride + k * PANEL + v % PER_PANEL * 4 * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const IntVec four = load_raw<int32_t>(x + r * x_stride + k) - IntVec{};
                for (int v = 0; v < VECS; ++v) PADLESS_DPBUSD(total[r][v], four, weight[v]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) store_raw(place(r, v), total[r][v]);
    }
};
#elif defined(__AVX2__)
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

struct Int8Gemm : Int8GemmTypes {
    static constexpr int ROWS = 4, PANELS = 1;
    static constexpr int64_t DEPTH = 1536;

    template <int ROWS, int PANELS>
    static void multiply(const uint8_t* x, int64_t x_stride, const int8_t* panels, int64_t, int64_t depth, bool add,
                         int32_t* sums, int64_t, Ahead ahead) {
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
    }
};
#else
// In fp32, whose products and sums of bytes are exact up to 2^24.
struct Int8Gemm : Int8GemmTypes {
    static constexpr int ROWS = Fp32Gemm::ROWS, PANELS = 1;
    static constexpr int64_t DEPTH = 512;
    static_assert(DEPTH * 255 * 127 < 1 << 24);

    template <int ROWS, int PANELS>
    static void multiply(const uint8_t* x, int64_t x_stride, const int8_t* panels, int64_t, int64_t depth, bool add,
                         int32_t* sums, int64_t, Ahead ahead) {
        constexpr int VECS = PANEL / LANES;
        Vec total[ROWS][VECS] = {};
        for (int64_t k = 0; k < depth; k += 4) {
            ahead.fetch();
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                Vec weight[VECS];
                for (int v = 0; v < VECS; ++v) {
                    const IntVec fours = load_raw<IntVec>(panels + k * PANEL + v * 4 * LANES);
                    weight[v] = __builtin_convertvector(fours << (24 - 8 * i) >> 24, Vec);  // its byte i
                }
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) {
                    const Vec value = broadcast(x[r * x_stride + k + i]);
                    for (int v = 0; v < VECS; ++v) total[r][v] += value * weight[v];
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) {
                int32_t* to = sums + r * PANEL + v * LANES;
                const IntVec whole = __builtin_convertvector(total[r][v], IntVec);
                store_raw(to, add ? load_raw<IntVec>(to) + whole : whole);
            }
    }
};
#endif
#endif

}  // namespace padless
