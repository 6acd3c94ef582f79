// What `paged_attention.cpp` does with numbers alone: scores of keys, their softmax, sums of values.
//
// A row is one query of one head. Keys are taken in chunks that begin at fixed positions; each adds up on its own, relative
// to its largest score, and the chunks of a row are merged in their order (online softmax: Milakov and Gimelshein, 2018).
// A row's result thus depends neither on the rows beside it nor on which thread took which chunk.
#pragma once

#include "kv_cache.h"
#include "rotary.h"

namespace padless {

constexpr int64_t CHUNK = 256;  // keys
constexpr int64_t CHUNK_BLOCKS = CHUNK / BLOCK;
constexpr int VECS = PANEL / LANES;
constexpr int MAX_ROWS = Fp32Gemm::ROWS;  // of a micro-kernel

// Panels side by side: few rows need several for enough sums that do not wait for one another.
constexpr int find_panels(int rows) {
    if (LANES == 16) return rows == 1 ? 8 : rows <= 4 ? 4 : 2;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}
constexpr int64_t SCORES_STRIDE = CHUNK + find_panels(1) * BLOCK;  // panels are rounded up

constexpr float NOTHING = -__builtin_inff();  // the largest score where no key was visible

// What the keys so far add up to, relative to their largest score: padded_dim numbers, the weights' total, that score.
inline int64_t sums_stride(int64_t padded_dim) { return padded_dim + PANEL; }

inline void clear_sums(float* sums, int64_t padded_dim) {
    std::memset(sums, 0, (padded_dim + 1) * sizeof(float));
    sums[padded_dim + 1] = NOTHING;
}

// total[row][panel] += x[row] . columns of panels, in the order of depth for every element. Meanwhile the panels in `ahead`
// are fetched: blocks lie scattered in memory, and those of few rows are read faster than the CPU would find out.
template <int ROWS, int PANELS, class T>
[[gnu::always_inline]] inline void multiply_add(
    const float* x, int64_t x_stride, const T* const* panels, const T* const* ahead, int64_t depth,
    Vec (&total)[ROWS][PANELS * VECS]) {
    constexpr int COLUMNS = PANELS * VECS;
    const auto find_weight = [&](int64_t k, int v) { return load(panels[v / VECS] + k * PANEL + v % VECS * LANES); };
    for (int64_t k = 0; k < depth; ++k) {
        for (int p = 0; p < PANELS; ++p) __builtin_prefetch(ahead[p] + k * PANEL);
        // The shorter side waits in registers.
        if constexpr (ROWS < COLUMNS) {
            Vec value[ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) value[r] = broadcast(x[r * x_stride + k]);
#pragma GCC unroll 16
            for (int v = 0; v < COLUMNS; ++v) {
                const Vec weight = find_weight(k, v);
                for (int r = 0; r < ROWS; ++r) total[r][v] += value[r] * weight;
            }
        } else {
            Vec weight[COLUMNS];
            for (int v = 0; v < COLUMNS; ++v) weight[v] = find_weight(k, v);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const Vec value = broadcast(x[r * x_stride + k]);
                for (int v = 0; v < COLUMNS; ++v) total[r][v] += value * weight[v];
            }
        }
    }
}

// scores[row][key] for the keys of PANELS blocks; as many are fetched.
template <int ROWS, int PANELS, class T>
void score_blocks(const float* queries, int64_t stride, int64_t head_dim, const T* const* keys, float* scores) {
    const T *panels[PANELS], *ahead[PANELS];
    for (int p = 0; p < PANELS; ++p) panels[p] = keys[p], ahead[p] = keys[PANELS + p];
    Vec total[ROWS][PANELS * VECS] = {};
    multiply_add<ROWS, PANELS>(queries, stride, panels, ahead, head_dim, total);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < PANELS * VECS; ++v) store(scores + r * SCORES_STRIDE + v * LANES, total[r][v]);
}

// sums[row] = weights[row] . the keys' values, in PANELS panels from `panel`. One more block is fetched.
template <int ROWS, int PANELS, class T>
void sum_panels(const float* weights, const T* const* values, int64_t first_key, int64_t last_key, int64_t panel,
                float* sums, int64_t stride) {
    Vec total[ROWS][PANELS * VECS] = {};
    for (int64_t key = first_key; key < last_key;) {
        const int64_t end = std::min(last_key, (key / BLOCK + 1) * BLOCK);
        const T *panels[PANELS], *ahead[PANELS];
        for (int p = 0; p < PANELS; ++p) {
            const int64_t place = ((panel + p) * BLOCK + key % BLOCK) * PANEL;
            panels[p] = values[key / BLOCK] + place, ahead[p] = values[key / BLOCK + 1] + place;
        }
        multiply_add<ROWS, PANELS>(weights + key, SCORES_STRIDE, panels, ahead, end - key, total);
        key = end;
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < PANELS * VECS; ++v) store(sums + r * stride + panel * PANEL + v * LANES, total[r][v]);
}

template <int ROWS, int PANELS, class T>
void sum_values(const float* weights, const T* const* values, int64_t first_key, int64_t last_key, int64_t panel,
                int64_t num_panels, float* sums, int64_t stride) {
    for (; panel + PANELS <= num_panels; panel += PANELS)
        sum_panels<ROWS, PANELS>(weights, values, first_key, last_key, panel, sums, stride);
    if constexpr (PANELS > 1)
        sum_values<ROWS, PANELS / 2>(weights, values, first_key, last_key, panel, num_panels, sums, stride);
}

// softcap * tanh(score / softcap)
inline Vec cap(Vec score, float softcap) {
    return softcap * (1.0f - 2.0f / (1.0f + exponential(score * (2.0f / softcap))));
}

// The bias of LANES keys, of which the first lies `distance` behind the query; of those ahead of it anything.
inline Vec load_bias(const float* bias, int64_t distance) {
    float lanes[LANES];
    if (distance >= LANES - 1)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] = bias[distance - lane];
    else
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] = bias[std::max<int64_t>(0, distance - lane)];
    return load(lanes);
}

// Scores of keys [first, last), of which a row sees [low, high), become weights. Keys it does not see weigh exactly 0.
// `bias`: of the row's head, by how far a key lies behind the last that it sees, or null. The scales are those of the keys
// and values, or null. Sets the total and the largest score behind `sums`.
inline void weigh_row(float* scores, int64_t first, int64_t last, int64_t low, int64_t high, float softcap,
                      const float* bias, const float* key_scales, const float* value_scales, float* total_and_top) {
    Vec top = broadcast(NOTHING), total{};
    for (int64_t key = first; key < last; key += LANES) {
        Vec score = load(scores + key);
        if (key_scales) score *= load(key_scales + key);
        if (softcap > 0) score = cap(score, softcap);
        if (bias) score += load_bias(bias, high - 1 - key);
        if (key < low || key + LANES > high) {
            const IntVec number = lane_numbers() + int32_t(key);
            score = select((number < int32_t(low)) | (number >= int32_t(high)), broadcast(NOTHING), score);
        }
        store(scores + key, score);
        top = maximum(score, top);
    }
    const Vec highest = broadcast(largest(top));
    for (int64_t key = first; key < last; key += LANES) {
        const Vec score = load(scores + key);
        const Vec weight = select(score == NOTHING, Vec{}, exponential(score - highest));
        total += weight;
        store(scores + key, value_scales ? weight * load(value_scales + key) : weight);
    }
    total_and_top[0] = sum(total);
    total_and_top[1] = highest[0];
}

// What sums relative to `top` are to be multiplied by to be relative to `highest`.
inline float find_factor(float top, float highest) {
    return top == highest ? 1.0f : exponential(broadcast(top - highest))[0];
}

// The sums of a later chunk into those of the chunks before. Not inlined, so that it rounds alike wherever it is called.
[[gnu::noinline]] inline void merge_sums(const float* later, int64_t padded_dim, float* sums) {
    const float top = sums[padded_dim + 1], later_top = later[padded_dim + 1];
    if (later_top == NOTHING && later[padded_dim] == 0) return;
    const float highest = std::max(top, later_top);
    const float factor = find_factor(top, highest), later_factor = find_factor(later_top, highest);
    for (int64_t i = 0; i < padded_dim; i += LANES)
        store(sums + i, load(sums + i) * factor + load(later + i) * later_factor);
    sums[padded_dim] = sums[padded_dim] * factor + later[padded_dim] * later_factor;
    sums[padded_dim + 1] = highest;
}

}  // namespace padless
