// Scores by the distance of a key from a query: queries times rows of one table, keys times rows of another.
//
// Distances fall into buckets, and a row of the tables is a bucket's. Of a task's queries and a block of keys only the rows
// that their distances reach are multiplied, as if they were keys; then each score fetches its product. Buckets of 16
// neighbouring distances lie together, so that one load and one permutation fetch 16 of them.
#pragma once

#include <cstdlib>

#include "varlen_attention_bf16.h"

namespace padless {

constexpr int64_t POSITION_KEYS = 64;  // keys of a block here: more of them would reach more rows than stay in cache
static_assert(POSITION_KEYS <= KEY_BLOCK);

// Of each lane the number that `places` gives, in a row that has LANES numbers to spare.
inline Vec look_up(const float* row, const int32_t* places) {
    const int32_t first = std::min(places[0], places[LANES - 1]), last = std::max(places[0], places[LANES - 1]);
    if (last - first < LANES) return __builtin_shuffle(load(row + first), load_raw<IntVec>(places) - first);
    float lanes[LANES];
    for (int i = 0; i < LANES; ++i) lanes[i] = row[places[i]];
    return load(lanes);
}

// What a task takes; its memory is the thread's, and stays for the next.
template <class Products>
struct PositionScores {
    using Number = typename Products::Number;
    struct Range {
        int64_t first, count;
    };

    const AttentionCall& call;
    const Products& products;
    const int64_t num_rows = round_up(call.num_buckets, LANES) + 2 * LANES;  // micro-kernels and loads go past the end
    Number *rows_k, *rows_q, *panel;          // of both tables those of the block, and 16 keys as columns
    float *by_bucket, *of_queries, *of_keys;  // products [bucket][16]; [16 queries][bucket]; [keys][bucket]
    int32_t* distances;                       // the buckets of those of a block and of 16 more to both sides

    PositionScores(const AttentionCall& given, const Products& of) : call(given), products(of) {
        if (!call.buckets) return;
        static thread_local std::vector<Number> numbers;
        static thread_local std::vector<float> memory;
        static thread_local std::vector<int32_t> places;
        distances = scratch(places, QUERY_BLOCK + POSITION_KEYS + 2 * QUERIES);
        rows_k = scratch(numbers, (2 * num_rows + QUERIES) * products.depth);
        rows_q = rows_k + num_rows * products.depth;
        panel = rows_q + num_rows * products.depth;
        by_bucket = scratch(memory, (2 * QUERIES + POSITION_KEYS) * num_rows);
        of_queries = by_bucket + QUERIES * num_rows;
        of_keys = of_queries + QUERIES * num_rows;
    }
    PositionScores(const PositionScores&) = delete;

    // Queries [first, last) of positions among the keys, and keys [key, key + num_keys) of the sequence that begins at
    // `start_k`. `column_k`: of the head in k. Gives the rows by distance.
    const int32_t* load_block(int64_t head, int64_t first, int64_t last, int64_t start_k, int64_t key, int64_t num_keys,
                              int64_t column_k) const {
        const int64_t nearest = key - (last - 1), farthest = key + num_keys - 1 - first;
        const int32_t* buckets = call.buckets + call.bucket_reach - 1;
        const int32_t lowest = std::min(buckets[nearest], buckets[farthest]);
        int32_t* places = distances + QUERIES - nearest;
        // Lanes without a query or a key are as far away as the last that has one.
        for (int64_t distance = nearest - QUERIES; distance <= farthest + QUERIES; ++distance)
            places[distance] = buckets[std::clamp(distance, nearest, farthest)] - lowest;
        const int64_t count = find_range(places, nearest, farthest).count;
        const int64_t column = call.has_table_of_each_head ? head * call.head_dim : 0;
        if (call.position_k.data) products.load_rows(call.position_k, lowest, column, count, rows_k);
        if (!call.position_q.data) return places;
        products.load_rows(call.position_q, lowest, column, count, rows_q);
        for (int64_t i = 0; i < num_keys; i += QUERIES) {
            const int64_t here = std::min(QUERIES, num_keys - i);
            products.load_panel(call.k, start_k + key + i, column_k, here, panel);
            const Range range = find_range(places, key + i - (last - 1), key + i + here - 1 - first);
            multiply(panel, rows_q, range, of_keys + i * num_rows);
        }
        return places;
    }

    static Range find_range(const int32_t* places, int64_t nearest, int64_t farthest) {
        const int64_t one = places[nearest], other = places[farthest];
        return {std::min(one, other), std::abs(one - other) + 1};
    }

    // to[lane][bucket]
    void multiply(const Number* lanes, const Number* rows, Range range, float* to) const {
        products.score_rows(lanes, rows + range.first * products.depth, range.count, by_bucket);
        to_rows(by_bucket, QUERIES, range.count, to + range.first, num_rows);
    }

    // To the scores of the tile's `count` queries, from position `query` on.
    void add(const int32_t* places, int64_t tile, int64_t query, int64_t count, int64_t key, int64_t num_keys,
             float* scores) const {
        if (call.position_k.data) {
            const Range range = find_range(places, key - (query + count - 1), key + num_keys - 1 - query);
            multiply(products.tile_queries(tile), rows_k, range, of_queries);
            add_of_queries(places + key - query, num_keys, scores);
        }
        if (call.position_q.data) add_of_keys(places + key - query, num_keys, scores);
    }

    // `places`: from that of the first query and key on.
    void add_of_queries(const int32_t* places, int64_t num_keys, float* scores) const {
        for (int64_t lane = 0; lane < QUERIES; lane += LANES)
            for (int64_t key = 0; key < num_keys; key += LANES) {
                Vec added[LANES];
                for (int64_t q = 0; q < LANES; ++q)
                    added[q] = look_up(of_queries + (lane + q) * num_rows, places + key - (lane + q));
                transpose(added);
                const int64_t here = std::min<int64_t>(LANES, num_keys - key);
                for (int64_t c = 0; c < here; ++c) {
                    float* place = scores + (key + c) * QUERIES + lane;
                    store(place, load(place) + added[c]);
                }
            }
    }

    // Lanes count positions up, and so distances down.
    void add_of_keys(const int32_t* places, int64_t num_keys, float* scores) const {
        for (int64_t key = 0; key < num_keys; ++key)
            for (int64_t lane = 0; lane < QUERIES; lane += LANES) {
                const Vec added = look_up(of_keys + key * num_rows, places + key - (lane + LANES - 1));
                float* place = scores + key * QUERIES + lane;
                store(place, load(place) + reversed(added));
            }
    }
};

}  // namespace padless
