// One layer of the cache of keys and values, as runtime/kv_cache/layout.py lays it out, and how tokens get into it.
#pragma once

#include <algorithm>
#include <cfloat>

#include "gemm.h"

namespace padless {

constexpr int64_t BLOCK = 16;  // tokens; keys lie by column, so that a block of them is one panel

// One head of a token as a row of the cache: head_dim floats, and zeros up to a multiple of PANEL.
inline void load_head(const Matrix& tokens, int64_t token, int64_t head, int64_t head_dim, float* row) {
    copy_row(tokens, token, head * head_dim, head_dim, row);
    std::fill(row + head_dim, row + round_up(head_dim, PANEL), 0.0f);
}

template <class T>
struct KVCache {
    static constexpr bool HAS_SCALES = sizeof(T) == 1;  // of each token, behind the numbers of its head

    T* layer;
    int64_t num_kv_heads, padded_dim;

    int64_t head_size() const { return BLOCK * padded_dim + (HAS_SCALES ? BLOCK * int64_t(sizeof(float)) : 0); }
    T* keys(int64_t block, int64_t head) const { return layer + (block * 2 * num_kv_heads + head) * head_size(); }
    T* values(int64_t block, int64_t head) const { return keys(block, head + num_kv_heads); }
    const T* scales(const T* head) const { return head + BLOCK * padded_dim; }

    // Rows of padded_dim floats.
    void store_key(const float* row, int64_t slot, int64_t head) const {
        T* to = keys(slot / BLOCK, head);
        const float scale = store_scale(row, to, slot % BLOCK);
        for (int64_t i = 0; i < padded_dim; i += LANES) {
            T lanes[LANES];
            store(lanes, scaled(load(row + i), scale));
            for (int lane = 0; lane < LANES; ++lane) to[(i + lane) * BLOCK + slot % BLOCK] = lanes[lane];
        }
    }

    void store_value(const float* row, int64_t slot, int64_t head) const {
        T* to = values(slot / BLOCK, head);
        const float scale = store_scale(row, to, slot % BLOCK);
        for (int64_t i = 0; i < padded_dim; i += LANES)
            store(to + i / PANEL * (BLOCK * PANEL) + slot % BLOCK * PANEL + i % PANEL, scaled(load(row + i), scale));
    }

    Vec scaled(Vec v, float scale) const {
        if constexpr (HAS_SCALES) return v / scale;
        return v;
    }

    // What the row's numbers are to be divided by. NaN where one of them is none or infinite: reading shows it.
    float store_scale(const float* row, T* head, int64_t place) const {
        if constexpr (!HAS_SCALES) return 1;
        Vec top{}, spoilt{};
        for (int64_t i = 0; i < padded_dim; i += LANES) {
            const Vec v = load(row + i);
            top = maximum(maximum(v, -v), top);
            spoilt += v * 0.0f;
        }
        const float scale = std::max(largest(top) / 127.0f, FLT_MIN) + sum(spoilt);
        store_raw(head + BLOCK * padded_dim + place * sizeof(float), scale);
        return scale;
    }
};

template <class T, class Body>
inline void with_layer_of(const Tensor& cache, int64_t layer, int64_t head_dim, const Body& body) {
    body(KVCache<T>{data<T>(cache) + layer * cache.strides[0], cache.sizes[3], round_up(head_dim, PANEL)});
}

// `body` gets one layer of a cache, by the type of its numbers.
template <class Body>
inline void with_layer(const Tensor& cache, int64_t layer, int64_t head_dim, const Body& body) {
    switch (cache.kind) {
        case BF16: return with_layer_of<BFloat16>(cache, layer, head_dim, body);
        case FP16: return with_layer_of<Float16>(cache, layer, head_dim, body);
        case INT8: return with_layer_of<int8_t>(cache, layer, head_dim, body);
        default: return with_layer_of<float>(cache, layer, head_dim, body);
    }
}

}  // namespace padless
