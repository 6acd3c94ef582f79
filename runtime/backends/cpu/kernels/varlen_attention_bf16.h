// Products of attention in bf16, by the micro-kernels of linear layers; sums, scores and the softmax stay fp32.
//
// A tile of queries is a panel: keys are the rows that it is multiplied with, and their product is [key][query], the scores.
// So is a block of their weights, rounded to bf16: values, by columns, times it are [d][query], the sums. Weights are
// rounded before they are added up, so that what divides the sums is what the values were weighted with.
#pragma once

#include "gemm_bf16.h"
#include "varlen_attention_fp32.h"

namespace padless {

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
static_assert(QUERIES == PANEL && KEY_BLOCK % Bf16Gemm::STEP == 0 && KEY_BLOCK % Bf16Gemm::GRAIN == 0);

// What is bf16 already, two by two, the first in the lower half.
inline Vec pair_up(Vec first, Vec second) { return (Vec)((BitVec)first >> 16 | (BitVec)second); }

// 16 pairs of a row from its column `i` on, 0 behind its end.
inline Vec load_pairs(const BFloat16* row, int64_t i, int64_t width) {
    if (i + 2 * LANES <= width) return load_raw<Vec>(row + i);
    BFloat16 buffer[2 * LANES] = {};
    std::memcpy(buffer, row + i, (width - i) * sizeof(BFloat16));
    return load_raw<Vec>(buffer);
}

// Rows [count][width] to a panel [depth / 2][QUERIES][2]; lanes without a row are 0.
inline void to_panel(const BFloat16* from, int64_t stride, int64_t count, int64_t width, int64_t depth, BFloat16* panel) {
    for (int64_t i = 0; i < width; i += 2 * LANES) {
        Vec rows[LANES];
        for (int r = 0; r < LANES; ++r) rows[r] = r < count ? load_pairs(from + r * stride, i, width) : Vec{};
        transpose(rows);
        const int64_t here = std::min<int64_t>(LANES, (depth - i) / 2);
        for (int c = 0; c < here; ++c) store_raw(panel + (i + 2 * c) * QUERIES, rows[c]);
    }
}

// Rows [count][width] to columns [width][KEY_BLOCK], with zeros behind the last row up to a multiple of 32.
inline void to_key_columns(const BFloat16* from, int64_t stride, int64_t count, int64_t width, BFloat16* to) {
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t here = std::min<int64_t>(LANES, width - i);
        const auto load_row = [=](int64_t row) {
            const BFloat16* place = from + row * stride + i;
            return row >= count ? Vec{} : here == LANES ? load(place) : load_some(place, here);
        };
        for (int64_t row = 0; row < count; row += 2 * LANES) {
            Vec pairs[LANES];
            for (int r = 0; r < LANES; ++r) pairs[r] = pair_up(load_row(row + 2 * r), load_row(row + 2 * r + 1));
            transpose(pairs);
            for (int c = 0; c < here; ++c) store_raw(to + (i + c) * KEY_BLOCK + row, pairs[c]);
        }
    }
}

// ROWS rows at once; the next ones are fetched. Not inlined: amid other code GCC keeps its sums on the stack.
template <int ROWS>
[[gnu::noinline]] void multiply_rows(const BFloat16* x, int64_t stride, const BFloat16* panel, int64_t depth, bool add,
                                     float* sums) {
    const Ahead ahead{reinterpret_cast<const char*>(x + ROWS * stride), 64};
    Bf16Gemm::multiply<ROWS, 1>(x, stride, panel, 0, depth, add, sums, 0, ahead);
}

// sums[row][query] = x[row] . panel, added to what is there if `add`. Whole micro-kernels, then what is left in one piece.
template <int ROWS = Bf16Gemm::ROWS>
void multiply_panel(const BFloat16* x, int64_t stride, int64_t rows, const BFloat16* panel, int64_t depth, bool add,
                    float* sums) {
    for (; rows >= ROWS; rows -= ROWS, x += ROWS * stride, sums += ROWS * QUERIES)
        multiply_rows<ROWS>(x, stride, panel, depth, add, sums);
    if constexpr (ROWS > Bf16Gemm::GRAIN)
        multiply_panel<ROWS - Bf16Gemm::GRAIN>(x, stride, rows, panel, depth, add, sums);
}

struct Bf16Products {
    using Number = BFloat16;
    const AttentionCall& call;
    const int64_t depth = round_up(call.head_dim, Bf16Gemm::STEP), num_columns = round_up(call.head_dim, Bf16Gemm::GRAIN);
    BFloat16 *queries, *keys, *values, *pairs;  // the first for each tile of the task's queries; the last: weights

    explicit Bf16Products(const AttentionCall& given) : call(given) {
        static thread_local std::vector<BFloat16> memory;
        keys = scratch(memory, (KEY_BLOCK + QUERY_BLOCK) * depth + KEY_BLOCK * (num_columns + QUERIES));
        queries = keys + KEY_BLOCK * depth;
        values = queries + QUERY_BLOCK * depth;
        pairs = values + KEY_BLOCK * num_columns;
        Bf16Gemm::begin();
    }
    ~Bf16Products() { Bf16Gemm::end(); }
    Bf16Products(const Bf16Products&) = delete;

    static Vec rounded(Vec weight) { return (Vec)(round_upper_halves(weight) & 0xffff0000); }

    const BFloat16* tile_queries(int64_t tile) const { return queries + tile * QUERIES * depth; }

    void load_queries(int64_t row, int64_t column, int64_t count, int64_t tile) const {
        load_panel(call.q, row, column, count, queries + tile * QUERIES * depth);
    }

    void load_panel(const Matrix& from, int64_t row, int64_t column, int64_t count, BFloat16* panel) const {
        to_panel(from.bf16(row) + column, from.stride, count, call.head_dim, depth, panel);
    }

    void load_rows(const Matrix& from, int64_t row, int64_t column, int64_t count, BFloat16* to) const {
        const int64_t width = call.head_dim;
        for (int64_t r = 0; r < count; ++r) {
            const BFloat16* place = from.bf16(row + r) + column;
            std::memcpy(to + r * depth, place, width * sizeof(BFloat16));
            std::fill(to + r * depth + width, to + (r + 1) * depth, BFloat16{});
            __builtin_prefetch(place + width);  // the next head's: see copy_rows
        }
    }

    void load_block(int64_t row, int64_t column, int64_t num_keys) const {
        load_rows(call.k, row, column, num_keys, keys);
        for (int64_t r = 0; r < num_keys; ++r) __builtin_prefetch(call.v.bf16(row + r) + column + call.head_dim);
        to_key_columns(call.v.bf16(row) + column, call.v.stride, num_keys, call.head_dim, values);
    }

    void score_block(int64_t tile, int64_t num_keys, float* scores) const {
        score_rows(tile_queries(tile), keys, num_keys, scores);
    }

    // Scaled afterwards: what is in panels has no bits to spare.
    void score_rows(const BFloat16* panel, const BFloat16* rows, int64_t count, float* scores) const {
        const float scale = call.softmax_scale;
        multiply_panel(rows, depth, round_up(count, Bf16Gemm::GRAIN), panel, depth, false, scores);
        for (int64_t row = 0; row < count; ++row) store(scores + row * QUERIES, load(scores + row * QUERIES) * scale);
    }

    void sum_block(float* weights, int64_t num_keys, const Vec (&rescale)[VECS], float* sums) const {
        const int64_t padded = round_up(num_keys, Bf16Gemm::STEP);
        BFloat16* panel = pairs;
        std::fill(weights + num_keys * QUERIES, weights + padded * QUERIES, 0.0f);
        for (int64_t key = 0; key < padded; key += 2) {
            const float* weight = weights + key * QUERIES;
            store_raw(panel + key * QUERIES, pair_up(load(weight), load(weight + QUERIES)));
        }
        for (int64_t d = 0; d < num_columns; ++d) store(sums + d * QUERIES, load(sums + d * QUERIES) * rescale[0]);
        multiply_panel(values, KEY_BLOCK, num_columns, panel, padded, true, sums);
    }
};
#else
using Bf16Products = Fp32Products;  // which widens them
#endif

}  // namespace padless
