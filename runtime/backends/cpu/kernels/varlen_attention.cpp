// `padless::varlen_attention`: 16 queries of one sequence and head at a time, one query per lane, against blocks of keys.
//
// Scores, softmax and sums are then plain vertical arithmetic: no reduction across lanes, and keys and values are read one
// number at a time, so neither is transposed. The softmax is online (Milakov and Gimelshein, 2018; FlashAttention): the sum
// of a block is rescaled when a later block has a larger score. A query's result depends on its own sequence alone.
#include <algorithm>
#include <vector>

#include "rows.h"

using namespace padless;

namespace {

constexpr int64_t QUERIES = 16, VECS = QUERIES / LANES;
constexpr int64_t QUERY_BLOCK = 128;  // queries of one task: long sequences fill all threads, keys are copied rarely
constexpr int64_t KEY_BLOCK = 256;
constexpr int KEY_TILE = LANES == 16 ? 12 : 6;
// The largest score where there was none yet. Finite, so that -inf, a masked score, is below it and weighs 0.
constexpr float LOWEST = -__FLT_MAX__;

struct AttentionCall {
    Matrix q, k, v, out;  // [tokens, heads * head_dim]; a head's numbers lie together
    const int32_t *cu_seqlens_q, *cu_seqlens_k;
    int64_t num_seqs, num_heads, head_dim;
    float softmax_scale;
    bool causal;
    int64_t window;  // -1: none
    const float* bias;  // [heads, 2 * reach - 1], by distance; may be null
    int64_t reach;
};

struct Task {
    int64_t seq, first_query, head;
};

// What one thread needs for one task; the memory stays for the next call.
struct Workspace {
    float *queries, *sums, *keys, *values, *scores;  // the first two for each tile of the task's queries

    explicit Workspace(int64_t head_dim) {
        static thread_local std::vector<float> memory;
        queries = scratch(memory, (2 * QUERY_BLOCK + 2 * KEY_BLOCK) * head_dim + KEY_BLOCK * QUERIES);
        sums = queries + QUERY_BLOCK * head_dim;
        scores = sums + QUERY_BLOCK * head_dim;
        keys = scores + KEY_BLOCK * QUERIES;
        values = keys + KEY_BLOCK * head_dim;
    }
};

// One head's numbers of some rows. The next head's lie behind them, and are fetched ahead: tasks go head by head.
void copy_rows(const Matrix& from, int64_t row, int64_t column, int64_t rows, int64_t width, float* to) {
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

// Bias by distance, and -inf where a query may not look. `first_position`: of the first query, among the keys.
void restrict_scores(const AttentionCall& call, int64_t head, int64_t first_position, int64_t first_key, int64_t num_keys,
                     float* scores) {
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

    // Scores become weights, relative to the largest score so far; returns what earlier sums are to be multiplied by.
    void weigh(float* scores, int64_t num_keys, Vec (&rescale)[VECS]) {
        for (int v = 0; v < VECS; ++v) {
            float* lane = scores + v * LANES;
            Vec largest = top[v];
            for (int64_t key = 0; key < num_keys; ++key) largest = maximum(load(lane + key * QUERIES), largest);
            rescale[v] = exponential(top[v] - largest);
            Vec sum = total[v] * rescale[v];
            for (int64_t key = 0; key < num_keys; ++key) {
                const Vec weight = exponential(load(lane + key * QUERIES) - largest);
                store(lane + key * QUERIES, weight);
                sum += weight;
            }
            top[v] = largest;
            total[v] = sum;
        }
    }
};

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

void score_block(const float* queries, const float* keys, int64_t num_keys, int64_t head_dim, float* scores) {
    int64_t key = 0;
    for (; key + KEY_TILE <= num_keys; key += KEY_TILE)
        score_keys<KEY_TILE>(queries, keys + key * head_dim, head_dim, scores + key * QUERIES);
    score_rest<KEY_TILE - 1>(queries, keys + key * head_dim, num_keys - key, head_dim, scores + key * QUERIES);
}

void sum_block(const float* weights, const float* values, int64_t num_keys, int64_t head_dim, const Vec (&rescale)[VECS],
               float* sums) {
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4)
        add_values<4>(weights, values + d, num_keys, head_dim, rescale, sums + d * QUERIES);
    for (; d < head_dim; ++d) add_values<1>(weights, values + d, num_keys, head_dim, rescale, sums + d * QUERIES);
}

// The keys that any query at positions [first, last] may look at.
void find_keys(const AttentionCall& call, int64_t first, int64_t last, int64_t len_k, int64_t& begin, int64_t& end) {
    begin = call.window >= 0 ? std::max<int64_t>(0, first - call.window) : 0;
    end = call.causal ? last + 1 : call.window >= 0 ? last + call.window + 1 : len_k;
    end = std::min(end, len_k);
}

void load_queries(const AttentionCall& call, int64_t row, int64_t column, int64_t count, float* queries) {
    if (call.q.kind == BF16)
        to_columns(call.q.bf16(row) + column, call.q.stride, count, call.head_dim, call.softmax_scale, queries);
    else
        to_columns(call.q.fp32(row) + column, call.q.stride, count, call.head_dim, call.softmax_scale, queries);
}

void store_result(const AttentionCall& call, const Softmax& softmax, int64_t row, int64_t column, int64_t count, float* sums) {
    for (int v = 0; v < VECS; ++v) {
        const Vec total = softmax.total[v], inverse = select(total == 0.0f, Vec{}, 1.0f / total);  // 0: it saw no key
        for (int64_t d = 0; d < call.head_dim; ++d) {
            float* sum = sums + d * QUERIES + v * LANES;
            store(sum, load(sum) * inverse);
        }
    }
    if (call.out.kind == BF16)
        to_rows(sums, count, call.head_dim, const_cast<BFloat16*>(call.out.bf16(row)) + column, call.out.stride);
    else
        to_rows(sums, count, call.head_dim, const_cast<float*>(call.out.fp32(row)) + column, call.out.stride);
}

// Each block of keys is copied once and met by all tiles of the task's queries, whose sums wait in between.
void run_task(const AttentionCall& call, const Task& task, const Workspace& space) {
    const int64_t start_q = call.cu_seqlens_q[task.seq], start_k = call.cu_seqlens_k[task.seq];
    const int64_t len_q = call.cu_seqlens_q[task.seq + 1] - start_q, len_k = call.cu_seqlens_k[task.seq + 1] - start_k;
    const int64_t first = task.first_query, last = std::min(first + QUERY_BLOCK, len_q), shift = len_k - len_q;
    const int64_t head_dim = call.head_dim, column = task.head * head_dim, tile_size = QUERIES * head_dim;
    const bool is_restricted = call.causal || call.window >= 0 || call.bias;
    Softmax softmax[QUERY_BLOCK / QUERIES];
    for (int64_t query = first; query < last; query += QUERIES)
        load_queries(call, start_q + query, column, std::min(QUERIES, last - query),
                     space.queries + (query - first) * head_dim);
    std::memset(space.sums, 0, round_up(last - first, QUERIES) * head_dim * sizeof(float));
    int64_t begin, end;
    find_keys(call, first + shift, last - 1 + shift, len_k, begin, end);
    for (int64_t key = begin / KEY_BLOCK * KEY_BLOCK; key < end; key += KEY_BLOCK) {
        const int64_t num_keys = std::min(KEY_BLOCK, end - key);
        copy_rows(call.k, start_k + key, column, num_keys, head_dim, space.keys);
        copy_rows(call.v, start_k + key, column, num_keys, head_dim, space.values);
        for (int64_t tile = 0; first + tile * QUERIES < last; ++tile) {
            const int64_t query = first + tile * QUERIES;
            int64_t from, to;
            find_keys(call, query + shift, std::min(query + QUERIES, last) - 1 + shift, len_k, from, to);
            if (from >= key + num_keys || to <= key) continue;
            score_block(space.queries + tile * tile_size, space.keys, num_keys, head_dim, space.scores);
            if (is_restricted) restrict_scores(call, task.head, query + shift, key, num_keys, space.scores);
            Vec rescale[VECS];
            softmax[tile].weigh(space.scores, num_keys, rescale);
            sum_block(space.scores, space.values, num_keys, head_dim, rescale, space.sums + tile * tile_size);
        }
    }
    for (int64_t query = first; query < last; query += QUERIES)
        store_result(call, softmax[(query - first) / QUERIES], start_q + query, column, std::min(QUERIES, last - query),
                     space.sums + (query - first) * head_dim);
}

int64_t count_wrong(const AttentionCall& call) {
    int64_t wrong = 0;
    for (int64_t seq = 0; call.bias && seq < call.num_seqs; ++seq)
        wrong += call.cu_seqlens_q[seq + 1] - call.cu_seqlens_q[seq] > call.reach ||
                 call.cu_seqlens_k[seq + 1] - call.cu_seqlens_k[seq] > call.reach;
    return wrong;
}

std::vector<Task> list_tasks(const AttentionCall& call) {
    std::vector<Task> tasks;
    for (int64_t seq = 0; seq < call.num_seqs; ++seq)
        for (int64_t head = 0; head < call.num_heads; ++head)
            for (int64_t query = 0; query < call.cu_seqlens_q[seq + 1] - call.cu_seqlens_q[seq]; query += QUERY_BLOCK)
                tasks.push_back({seq, query, head});
    return tasks;
}

}  // namespace

// Counts the sequences that the bias does not reach.
PADLESS_KERNEL(varlen_attention, VarlenAttention) {
    const int64_t reach = call.bias.data ? (call.bias.sizes[1] + 1) / 2 : 0;
    const AttentionCall attention{
        tokens_of(call.q), tokens_of(call.k), tokens_of(call.v), tokens_of(call.out), data<int32_t>(call.cu_seqlens_q),
        data<int32_t>(call.cu_seqlens_k), call.cu_seqlens_q.sizes[0] - 1, call.q.sizes[1], call.q.sizes[2],
        float(call.softmax_scale), call.causal != 0, call.window, data<float>(call.bias), reach};
    if (const int64_t wrong = count_wrong(attention)) return wrong;
    const std::vector<Task> tasks = list_tasks(attention);
#pragma omp parallel
    {
        const Workspace space(attention.head_dim);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) run_task(attention, tasks[i], space);
    }
    return 0;
}
