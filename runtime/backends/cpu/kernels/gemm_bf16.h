// bf16 panels: times rows of bf16 where the CPU multiplies pairs of them, else widened and times rows of fp32; see gemm.h.
//
// Sums are fp32 either way. Without the instructions every sum runs over k as in Fp32Gemm, one fused multiply-add after
// the other: few rows, which wait for memory, widen weights in registers, and many widen them once for all.
#pragma once

#include "gemm_tiles.h"

namespace padless {

#if defined(__AMX_BF16__)
using Bf16Gemm = TileGemm<BFloat16, BFloat16, float>;
#elif defined(__AVX512BF16__)
// total += two bf16 times two others, in each lane. In assembly for the reason that PADLESS_DPBUSD has.
#if !defined(PADLESS_DPBF16)
#define PADLESS_DPBF16(total, pair, weight) \
    asm("vdpbf16ps %[w], %[x], %[sum]" : [sum] "+v"(total) : [x] "v"(pair), [w] "v"(weight))
#endif

struct Bf16Gemm {
    using Input = BFloat16;
    using Weight = BFloat16;
    using Sum = float;
    static constexpr int ROWS = 12, PANELS = 2;
    static constexpr int64_t GRAIN = 1;
    static constexpr int64_t STEP = 2;  // of k, in one product
    static constexpr int64_t DEPTH = 512;
    static constexpr int64_t PADDING = 32;
    static constexpr int64_t WIDEN_FROM = 0;

    static void begin() {}
    static void end() {}

    template <int ROWS, int PANELS>
    static void multiply(const BFloat16* x, int64_t x_stride, const BFloat16* panels, int64_t panel_stride, int64_t depth,
                         bool add, float* sums, int64_t sums_stride, Ahead ahead) {
        Vec total[ROWS][PANELS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p) total[r][p] = add ? load(sums + p * sums_stride + r * PANEL) : Vec{};
        for (int64_t k = 0; k < depth; k += 2) {
            ahead.fetch();
            IntVec weight[PANELS];
            for (int p = 0; p < PANELS; ++p) weight[p] = load_raw<IntVec>(panels + p * panel_stride + k * PANEL);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const IntVec pair = load_raw<int32_t>(x + r * x_stride + k) - IntVec{};
                for (int p = 0; p < PANELS; ++p) PADLESS_DPBF16(total[r][p], pair, weight[p]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p) store(sums + p * sums_stride + r * PANEL, total[r][p]);
    }
};
#else
struct WideningGemm {
    using Input = float;
    using Weight = BFloat16;
    using Sum = float;
    static constexpr int64_t GRAIN = 1;
    static constexpr int64_t DEPTH = 512;
    static constexpr int64_t PADDING = 32;

    static void begin() {}
    static void end() {}

    static Vec first_of_pairs(BitVec pairs) { return (Vec)(pairs << 16); }
    static Vec second_of_pairs(BitVec pairs) { return (Vec)(pairs & 0xffff0000); }

    // A piece of a panel, [depth / 2][16][2], as [depth][16].
    static void widen(const BFloat16* panel, int64_t depth, float* wide) {
        for (int64_t k = 0; k < depth; k += 2)
            for (int64_t lane = 0; lane < PANEL; lane += LANES) {
                const BitVec pairs = load_raw<BitVec>(panel + k * PANEL + 2 * lane);
                store(wide + k * PANEL + lane, first_of_pairs(pairs));
                store(wide + (k + 1) * PANEL + lane, second_of_pairs(pairs));
            }
    }

    static BitVec load_pairs(const BFloat16* panels, int64_t panel_stride, int v) {
        constexpr int PER_PANEL = PANEL / LANES;
        return load_raw<BitVec>(panels + v / PER_PANEL * panel_stride + v % PER_PANEL * 2 * LANES);
    }

    template <int ROWS, int VECS>
    [[gnu::always_inline]] static void add_products(
        const float* x, int64_t x_stride, const Vec (&weight)[VECS], Vec (&total)[ROWS][VECS]) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Vec value = broadcast(x[r * x_stride]);
            for (int v = 0; v < VECS; ++v) total[r][v] += value * weight[v];
        }
    }

    template <int ROWS, int PANELS>
    static void multiply(const float* x, int64_t x_stride, const BFloat16* panels, int64_t panel_stride, int64_t depth,
                         bool add, float* sums, int64_t sums_stride, Ahead ahead) {
        constexpr int VECS = PANEL / LANES * PANELS, PER_PANEL = PANEL / LANES;
        Vec total[ROWS][VECS];
        const auto place = [=](int r, int v) {
            return sums + v / PER_PANEL * sums_stride + r * PANEL + v % PER_PANEL * LANES;
        };
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) total[r][v] = add ? load(place(r, v)) : Vec{};
        for (int64_t k = 0; k < depth; k += 2) {
            ahead.fetch();
            const BFloat16 *first = panels + k * PANEL, *second = first;
            asm("" : "+r"(second));  // else GCC keeps pairs for their other half, and sums on the stack
            Vec weight[VECS];
            for (int v = 0; v < VECS; ++v) weight[v] = first_of_pairs(load_pairs(first, panel_stride, v));
            add_products<ROWS, VECS>(x + k, x_stride, weight, total);
            for (int v = 0; v < VECS; ++v) weight[v] = second_of_pairs(load_pairs(second, panel_stride, v));
            add_products<ROWS, VECS>(x + k + 1, x_stride, weight, total);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) store(place(r, v), total[r][v]);
    }
};

// So few sums wait for one another, unless there are more panels of them.
struct FewRowsGemm : WideningGemm {
    static constexpr int ROWS = 2, PANELS = LANES / 4;
};

struct Bf16Gemm : WideningGemm {
    using Few = FewRowsGemm;
    using Wide = Fp32Gemm;
    // With a row more sums leave the registers.
    static constexpr int ROWS = LANES == 16 ? 8 : LANES == 8 ? 5 : 2, PANELS = LANES == 16 ? 2 : 1;
    static constexpr int64_t WIDEN_FROM = 2 * ROWS + 1;  // rows: for so many a piece of a panel is widened once
};
#endif

}  // namespace padless
