// `padless::varlen_attention`: 16 queries of one sequence and head at a time, one query per lane, against blocks of keys.
//
// Scores, softmax and sums are then plain vertical arithmetic: no reduction across lanes. The softmax is online (Milakov and
// Gimelshein, 2018; FlashAttention): the sum of a block is rescaled when a later block has a larger score. A query's result
// depends on its own sequence alone.
#include <algorithm>
#include <vector>

#include "varlen_attention_positions.h"

using namespace padless;

namespace {

struct Task {
    int64_t seq, first_query, head;
};

// The keys that any query at positions [first, last] may look at, of `num_seen`.
void find_keys(const AttentionCall& call, int64_t first, int64_t last, int64_t num_seen, int64_t& begin, int64_t& end) {
    begin = call.window >= 0 ? std::max<int64_t>(0, first - call.window) : 0;
    end = call.causal ? last + 1 : call.window >= 0 ? last + call.window + 1 : num_seen;
    end = std::min(end, num_seen);
}

// What a task takes; its memory is the thread's, and stays for the next.
template <class Products>
struct Attention {
    const AttentionCall& call;
    const Products products;
    const PositionScores<Products> positions;
    const int64_t sums_size = round_up(call.head_dim, 16) * QUERIES;  // tiles of AMX have whole rows
    float *sums, *scores;  // the first for each tile of the task's queries

    explicit Attention(const AttentionCall& given) : call(given), products(given), positions(given, products) {
        static thread_local std::vector<float> memory;
        sums = scratch(memory, QUERY_BLOCK / QUERIES * sums_size + KEY_BLOCK * QUERIES);
        scores = sums + QUERY_BLOCK / QUERIES * sums_size;
    }

    void store_result(const Softmax& softmax, int64_t row, int64_t column, int64_t count, float* tile_sums) const {
        for (int v = 0; v < VECS; ++v) {
            const Vec total = softmax.total[v], inverse = select(total == 0.0f, Vec{}, 1.0f / total);  // 0: it saw no key
            for (int64_t d = 0; d < call.head_dim; ++d) {
                float* sum = tile_sums + d * QUERIES + v * LANES;
                store(sum, load(sum) * inverse);
            }
        }
        if (call.out.kind == BF16)
            to_rows(tile_sums, count, call.head_dim, const_cast<BFloat16*>(call.out.bf16(row)) + column, call.out.stride);
        else
            to_rows(tile_sums, count, call.head_dim, const_cast<float*>(call.out.fp32(row)) + column, call.out.stride);
    }

    // Each block of keys is copied once and met by all tiles of the task's queries, whose sums wait in between.
    void run_task(const Task& task) const {
        const int64_t start_q = call.cu_seqlens_q[task.seq], start_k = call.cu_seqlens_k[task.seq];
        const int64_t len_q = call.cu_seqlens_q[task.seq + 1] - start_q, len_k = call.cu_seqlens_k[task.seq + 1] - start_k;
        const int64_t first = task.first_query, last = std::min(first + QUERY_BLOCK, len_q), shift = len_k - len_q;
        const int64_t num_tiles = (last - first + QUERIES - 1) / QUERIES, column = task.head * call.head_dim;
        const int64_t column_k = task.head / call.group * call.head_dim;
        const int64_t num_seen = call.num_keys ? call.num_keys[task.seq] : len_k;
        const bool is_restricted = call.causal || call.window >= 0 || call.bias;
        const int64_t block = call.buckets ? POSITION_KEYS : KEY_BLOCK;
        Softmax softmax[QUERY_BLOCK / QUERIES];
        const auto find_query = [=](int64_t tile) { return std::min(first + tile * QUERIES, last); };
        for (int64_t tile = 0; tile < num_tiles; ++tile)
            products.load_queries(start_q + find_query(tile), column, find_query(tile + 1) - find_query(tile), tile);
        std::memset(sums, 0, num_tiles * sums_size * sizeof(float));
        int64_t begin, end;
        find_keys(call, first + shift, last - 1 + shift, num_seen, begin, end);
        for (int64_t key = begin / block * block; key < end; key += block) {
            const int64_t num_keys = std::min(block, end - key);
            products.load_block(start_k + key, column_k, num_keys);
            const int32_t* places = nullptr;
            if (call.buckets)
                places = positions.load_block(task.head, first + shift, last + shift, start_k, key, num_keys, column_k);
            for (int64_t tile = 0; tile < num_tiles; ++tile) {
                int64_t from, to;
                find_keys(call, find_query(tile) + shift, find_query(tile + 1) - 1 + shift, num_seen, from, to);
                if (from >= key + num_keys || to <= key) continue;
                products.score_block(tile, num_keys, scores);
                if (places)
                    positions.add(places, tile, find_query(tile) + shift, find_query(tile + 1) - find_query(tile), key,
                                  num_keys, scores);
                if (is_restricted) restrict_scores(call, task.head, find_query(tile) + shift, key, num_keys, scores);
                Vec rescale[VECS];
                softmax[tile].template weigh<Products>(scores, num_keys, rescale);
                products.sum_block(scores, num_keys, rescale, sums + tile * sums_size);
            }
        }
        for (int64_t tile = 0; tile < num_tiles; ++tile)
            store_result(softmax[tile], start_q + find_query(tile), column, find_query(tile + 1) - find_query(tile),
                         sums + tile * sums_size);
    }
};

// Buckets that the tables do not have, or that turn back.
int64_t count_wrong_buckets(const AttentionCall& call) {
    if (!call.buckets) return 0;
    const int64_t last = 2 * call.bucket_reach - 2, rise = call.buckets[last] < call.buckets[0] ? -1 : 1;
    int64_t wrong = 0;
    for (int64_t i = 0; i <= last; ++i) {
        wrong += call.buckets[i] < 0 || call.buckets[i] >= call.num_buckets;
        wrong += i > 0 && (call.buckets[i] - call.buckets[i - 1]) * rise < 0;
    }
    return wrong;
}

int64_t count_wrong(const AttentionCall& call) {
    int64_t wrong = count_wrong_buckets(call);
    for (int64_t seq = 0; seq < call.num_seqs; ++seq) {
        const int64_t len_q = call.cu_seqlens_q[seq + 1] - call.cu_seqlens_q[seq];
        const int64_t len_k = call.cu_seqlens_k[seq + 1] - call.cu_seqlens_k[seq];
        wrong += call.bias && (len_q > call.reach || len_k > call.reach);
        wrong += call.buckets && (len_q > call.bucket_reach || len_k > call.bucket_reach);
        wrong += call.num_keys && (call.num_keys[seq] < 0 || call.num_keys[seq] > len_k);
    }
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

template <class Products>
void run(const AttentionCall& call) {
    const std::vector<Task> tasks = list_tasks(call);
    parallel_for(tasks.size(), true, [&](int64_t task) { Attention<Products>(call).run_task(tasks[task]); });
}

}  // namespace

// Counts wrong buckets, and the sequences that the bias or the buckets do not reach, or whose keys are fewer than they are
// said to be.
PADLESS_KERNEL(varlen_attention, VarlenAttention) {
    const int64_t reach = call.bias.data ? (call.bias.sizes[1] + 1) / 2 : 0;
    const Tensor& table = call.position_k.data ? call.position_k : call.position_q;
    const auto is_bf16 = [](const Tensor& x) { return !x.data || x.kind == BF16; };
    const AttentionCall attention{
        tokens_of(call.q), tokens_of(call.k), tokens_of(call.v), tokens_of(call.out), call.q.sizes[1] / call.k.sizes[1],
        data<int32_t>(call.cu_seqlens_q), data<int32_t>(call.cu_seqlens_k), call.cu_seqlens_q.sizes[0] - 1, call.q.sizes[1], call.q.sizes[2],
        float(call.softmax_scale), call.causal != 0, call.window, data<float>(call.bias), reach,
        data<int32_t>(call.num_keys), tokens_of(call.position_k), tokens_of(call.position_q), table.sizes[1] > 1,
        data<int32_t>(call.buckets), table.sizes[0], (call.buckets.sizes[0] + 1) / 2};
    if (const int64_t wrong = count_wrong(attention)) return wrong;
    if (is_bf16(call.q) && is_bf16(call.k) && is_bf16(call.v) && is_bf16(call.position_k) && is_bf16(call.position_q))
        run<Bf16Products>(attention);
    else
        run<Fp32Products>(attention);
    return 0;
}
