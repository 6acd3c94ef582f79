// Products of attention in fp32: keys and values are read one number at a time, so neither is transposed. bf16 is widened.
#pragma once

#include <vector>

#include "varlen_attention.h"

namespace padless {

constexpr int KEY_TILE = LANES == 16 ? 12 : 6;

// One head's numbers of some rows. The next head's lie behind them, and are fetched ahead: tasks go head by head.
inline void copy_rows(const Matrix& from, int64_t row, int64_t column, int64_t rows, int64_t width, float* to) {
    for (int64_t r = 0; r < rows; ++r) {
        copy_row(from, row + r, column, width, to + r * width);
        __builtin_prefetch(from.kind == BF16 ? (const void*)(from.bf16(row + r) + column + width)
                                             : (const void*)(from.fp32(row + r) + column + width));
    }
}

// Rows [count][width] to columns [width][QUERIES], times `factor`; lanes without a row are 0.
template <class T>
void to_columns(const T* from, int64_t stride, int64_t count, int64_t width, float factor, float* to) {
    for (int64_t base = 0; base < QUERIES; base += LANES)
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t here = std::min<int64_t>(LANES, width - i);
            Vec rows[LANES];
            for (int r = 0; r < LANES; ++r) {
                const T* row = from + (base + r) * stride + i;
                rows[r] = base + r >= count ? Vec{} : here == LANES ? load(row) : load_some(row, here);
            }
            transpose(rows);
            for (int c = 0; c < here; ++c) store(to + (i + c) * QUERIES + base, rows[c] * factor);
        }
}

// scores[key][query] = queries . keys, KEYS keys at once.
template <int KEYS>
void score_keys(const float* queries, const float* keys, int64_t head_dim, float* scores) {
    Vec total[KEYS][VECS] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
        Vec query[VECS];
        for (int v = 0; v < VECS; ++v) query[v] = load(queries + d * QUERIES + v * LANES);
#pragma GCC unroll 16
        for (int key = 0; key < KEYS; ++key) {
            const Vec value = broadcast(keys[key * head_dim + d]);
            for (int v = 0; v < VECS; ++v) total[key][v] += query[v] * value;
        }
    }
#pragma GCC unroll 16
    for (int key = 0; key < KEYS; ++key)
        for (int v = 0; v < VECS; ++v) store(scores + key * QUERIES + v * LANES, total[key][v]);
}

// sums[d][query] = sums * rescale + weights . values, for WIDTH columns of the head at once.
template <int WIDTH>
void add_values(const float* weights, const float* values, int64_t num_keys, int64_t head_dim, const Vec (&rescale)[VECS],
                float* sums) {
    Vec total[WIDTH][VECS];
#pragma GCC unroll 16
    for (int d = 0; d < WIDTH; ++d)
        for (int v = 0; v < VECS; ++v) total[d][v] = load(sums + d * QUERIES + v * LANES) * rescale[v];
    for (int64_t key = 0; key < num_keys; ++key) {
        Vec weight[VECS];
        for (int v = 0; v < VECS; ++v) weight[v] = load(weights + key * QUERIES + v * LANES);
#pragma GCC unroll 16
        for (int d = 0; d < WIDTH; ++d) {
            const Vec value = broadcast(values[key * head_dim + d]);
            for (int v = 0; v < VECS; ++v) total[d][v] += weight[v] * value;
        }
    }
#pragma GCC unroll 16
    for (int d = 0; d < WIDTH; ++d)
        for (int v = 0; v < VECS; ++v) store(sums + d * QUERIES + v * LANES, total[d][v]);
}

// What is left after whole tiles, in one piece: single keys would wait for one another's sums.
template <int KEYS>
void score_rest(const float* queries, const float* keys, int64_t count, int64_t head_dim, float* scores) {
    if constexpr (KEYS > 0) {
        if (count == KEYS)
            score_keys<KEYS>(queries, keys, head_dim, scores);
        else
            score_rest<KEYS - 1>(queries, keys, count, head_dim, scores);
    }
}

struct Fp32Products {
    using Number = float;
    const AttentionCall& call;
    const int64_t head_dim = call.head_dim, depth = head_dim;  // numbers from row to row
    float *queries, *keys, *values;  // the first for each tile of the task's queries

    explicit Fp32Products(const AttentionCall& given) : call(given) {
        static thread_local std::vector<float> memory;
        queries = scratch(memory, (QUERY_BLOCK + 2 * KEY_BLOCK) * head_dim);
        keys = queries + QUERY_BLOCK * head_dim;
        values = keys + KEY_BLOCK * head_dim;
    }

    static Vec rounded(Vec weight) { return weight; }

    const float* tile_queries(int64_t tile) const { return queries + tile * QUERIES * head_dim; }

    void load_queries(int64_t row, int64_t column, int64_t count, int64_t tile) const {
        load_panel(call.q, row, column, count, queries + tile * QUERIES * head_dim);
    }

    // Up to 16 rows to columns, scaled.
    void load_panel(const Matrix& from, int64_t row, int64_t column, int64_t count, float* panel) const {
        if (from.kind == BF16)
            to_columns(from.bf16(row) + column, from.stride, count, head_dim, call.softmax_scale, panel);
        else
            to_columns(from.fp32(row) + column, from.stride, count, head_dim, call.softmax_scale, panel);
    }

    void load_rows(const Matrix& from, int64_t row, int64_t column, int64_t count, float* to) const {
        copy_rows(from, row, column, count, head_dim, to);
    }

    void load_block(int64_t row, int64_t column, int64_t num_keys) const {
        copy_rows(call.k, row, column, num_keys, head_dim, keys);
        copy_rows(call.v, row, column, num_keys, head_dim, values);
    }

    void score_block(int64_t tile, int64_t num_keys, float* scores) const {
        score_rows(tile_queries(tile), keys, num_keys, scores);
    }

    // scores[row][lane] of a panel that `load_panel` has made.
    void score_rows(const float* panel, const float* rows, int64_t count, float* scores) const {
        int64_t row = 0;
        for (; row + KEY_TILE <= count; row += KEY_TILE)
            score_keys<KEY_TILE>(panel, rows + row * head_dim, head_dim, scores + row * QUERIES);
        score_rest<KEY_TILE - 1>(panel, rows + row * head_dim, count - row, head_dim, scores + row * QUERIES);
    }

    void sum_block(const float* weights, int64_t num_keys, const Vec (&rescale)[VECS], float* sums) const {
        int64_t d = 0;
        for (; d + 4 <= head_dim; d += 4)
            add_values<4>(weights, values + d, num_keys, head_dim, rescale, sums + d * QUERIES);
        for (; d < head_dim; ++d) add_values<1>(weights, values + d, num_keys, head_dim, rescale, sums + d * QUERIES);
    }
};

}  // namespace padless
