// What `varlen_attention.cpp` does with scores, whoever multiplies: masks, biases and the softmax, one query per lane.
//
// Products are those of varlen_attention_fp32.h, and of varlen_attention_bf16.h where the CPU multiplies pairs of bf16.
// varlen_attention_positions.h has scores by distance.
#pragma once

#include <algorithm>

#include "rows.h"

namespace padless {

constexpr int64_t QUERIES = 16, VECS = QUERIES / LANES;
constexpr int64_t QUERY_BLOCK = 128;  // queries of one task: long sequences fill all threads, keys are copied rarely
constexpr int64_t KEY_BLOCK = 256;
// The largest score where there was none yet. Finite, so that -inf, a masked score, is below it and weighs 0.
constexpr float LOWEST = -__FLT_MAX__;

struct AttentionCall {
    Matrix q, k, v, out;  // [tokens, heads * head_dim]; a head's numbers lie together
    int64_t group;        // heads of q that share one of k and v
    const int32_t *cu_seqlens_q, *cu_seqlens_k;
    int64_t num_seqs, num_heads, head_dim;
    float softmax_scale;
    bool causal;
    int64_t window;  // -1: none
    const float* bias;  // [heads, 2 * reach - 1], by distance; may be null
    int64_t reach;
    const int32_t* num_keys;  // [sequences]; null: all keys are seen
    Matrix position_k, position_q;  // [buckets, heads or 1 * head_dim]; either may be null
    bool has_table_of_each_head;
    const int32_t* buckets;  // [2 * bucket_reach - 1], by distance; may be null
    int64_t num_buckets, bucket_reach;
};

// Columns [width][QUERIES] to rows [count][width], `stride` apart.
template <class T>
void to_rows(const float* from, int64_t count, int64_t width, T* to, int64_t stride) {
    for (int64_t base = 0; base < count; base += LANES)
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t here = std::min<int64_t>(LANES, width - i);
            Vec columns[LANES];
            for (int c = 0; c < LANES; ++c) columns[c] = c < here ? load(from + (i + c) * QUERIES + base) : Vec{};
            transpose(columns);
            for (int r = 0; r < LANES && base + r < count; ++r) {
                T* row = to + (base + r) * stride + i;
                here == LANES ? store(row, columns[r]) : store_some(row, columns[r], here);
            }
        }
}

// Bias by distance, and -inf where a query may not look. `first_position`: of the first query, among the keys.
inline void restrict_scores(const AttentionCall& call, int64_t head, int64_t first_position, int64_t first_key,
                            int64_t num_keys, float* scores) {
    const Vec forbidden = broadcast(-__builtin_inff());
    const float* bias = call.bias ? call.bias + head * (2 * call.reach - 1) + call.reach - 1 : nullptr;
    for (int64_t key = first_key; key < first_key + num_keys; ++key, scores += QUERIES)
        for (int v = 0; v < VECS; ++v) {
            const int64_t position = first_position + v * LANES;
            const IntVec distance = int32_t(key - position) - lane_numbers();
            Vec score = load(scores + v * LANES);
            if (bias) {
                // Lanes count positions up, and so distances down. Lanes past the last query may reach out of the table.
                const int64_t low = key - position - (LANES - 1), start = std::max(low, 1 - call.reach);
                float lanes[LANES] = {};
                const int64_t end = std::min(low + LANES, call.reach);
                if (end > start) std::memcpy(lanes + (start - low), bias + start, (end - start) * sizeof(float));
                score += reversed(load(lanes));
            }
            if (call.causal) score = select(distance > 0, forbidden, score);
            if (call.window >= 0)
                score = select((distance > int32_t(call.window)) | (distance < -int32_t(call.window)), forbidden, score);
            store(scores + v * LANES, score);
        }
}

struct Softmax {
    Vec top[VECS], total[VECS];

    Softmax() {
        for (int v = 0; v < VECS; ++v) top[v] = broadcast(LOWEST), total[v] = Vec{};
    }

    // Scores become weights, relative to the largest score so far; sets what earlier sums are to be multiplied by.
    template <class Products>
    void weigh(float* scores, int64_t num_keys, Vec (&rescale)[VECS]) {
        for (int v = 0; v < VECS; ++v) {
            float* lane = scores + v * LANES;
            Vec largest = top[v];
            for (int64_t key = 0; key < num_keys; ++key) largest = maximum(load(lane + key * QUERIES), largest);
            rescale[v] = exponential(top[v] - largest);
            Vec sum = total[v] * rescale[v];
            for (int64_t key = 0; key < num_keys; ++key) {
                const Vec weight = Products::rounded(exponential(load(lane + key * QUERIES) - largest));
                store(lane + key * QUERIES, weight);
                sum += weight;
            }
            top[v] = largest;
            total[v] = sum;
        }
    }
};

}  // namespace padless
