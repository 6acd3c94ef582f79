// `padless::paged_attention`: store the new keys and values in their blocks, then let each new token look at its past.
//
// Blocks are multiplied where they lie: a block of keys is a panel of a GEMM, and so are 16 columns of its values. The
// query heads that share a kv head are rows of one task, so that its blocks are read once for all of them. Nothing is read
// of keys before a task's window or behind its last token: whatever lies there, NaN too, does not matter.
#include <omp.h>

#include "paged_attention.h"

using namespace padless;

namespace {

constexpr int64_t TILE_ROWS = 96;
constexpr int64_t SPLIT_ROWS = 16;  // a tile of no more rows may have its chunks taken by several threads

struct PagedCall {
    Matrix q, k, v, out;  // [tokens, heads * head_dim]; a head's numbers lie together
    const int64_t* slots;
    const int32_t *block_table, *cu_seqlens, *cache_seqlens;
    const int64_t* positions;
    const float* rotary;  // [num_positions, rotary_dim]; may be null
    int64_t num_tokens, num_seqs, num_heads, num_kv_heads, head_dim, num_blocks, max_blocks, num_positions, rotary_dim;
    float softmax_scale;
    int64_t window;  // -1: none
    float softcap;   // 0: none

    int64_t padded_dim() const { return round_up(head_dim, PANEL); }
    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t num_queries(int64_t seq) const { return cu_seqlens[seq + 1] - cu_seqlens[seq]; }
    const int32_t* blocks(int64_t seq) const { return block_table + seq * max_blocks; }

    // One head of a token as padded_dim floats, turned to the token's position.
    void load_row(const Matrix& from, int64_t token, int64_t head, float* row) const {
        copy_row(from, token, head * head_dim, head_dim, row);
        std::fill(row + head_dim, row + padded_dim(), 0.0f);
    }

    void rotate(int64_t token, float* row) const {
        if (rotary) rotate_row(row, rotary + positions[token] * rotary_dim, rotary_dim / 2);
    }
};

// Queries of one sequence, in all heads of a group: row i is query first_query + i / group.
struct Tile {
    int64_t seq, kv_head, first_query, num_queries;
    int64_t first_chunk, last_chunk;
    bool is_split;  // its chunks are taken by several threads, and add up to
    float* parts;   // sums of each chunk and row
};

// Chunks of a tile that one thread takes.
struct Piece {
    const Tile* tile;
    int64_t first_chunk, last_chunk;

    int64_t num_chunks() const { return last_chunk - first_chunk; }
};

// How many slots, positions, lengths and blocks point out of their memory.
int64_t count_wrong(const PagedCall& call) {
    const auto is_out = [](int64_t index, int64_t size) { return uint64_t(index) >= uint64_t(size); };
    int64_t wrong = 0;
    for (int64_t token = 0; token < call.num_tokens; ++token) {
        wrong += is_out(call.slots[token], call.num_blocks * BLOCK);
        if (call.rotary) wrong += is_out(call.positions[token], call.num_positions);
    }
    for (int64_t seq = 0; seq < call.num_seqs; ++seq) {
        const int64_t first = call.cu_seqlens[seq], last = call.cu_seqlens[seq + 1], length = call.cache_seqlens[seq];
        if (first < 0 || last < first || last > call.num_tokens || length < last - first ||
            length > call.max_blocks * BLOCK)
            ++wrong;
        else
            for (int64_t i = 0; i < round_up(length, BLOCK) / BLOCK; ++i)
                wrong += is_out(call.blocks(seq)[i], call.num_blocks);
    }
    return wrong;
}

// Memory of one thread that stays for the next call.
struct Workspace {
    float *queries, *sums;  // for each row of a tile
    float *part, *scores;   // for each row of a micro-kernel

    Workspace(int64_t rows, int64_t padded_dim) {
        static thread_local std::vector<float> memory;
        const int64_t stride = sums_stride(padded_dim);
        queries = scratch(memory, rows * padded_dim + (rows + MAX_ROWS) * stride + MAX_ROWS * SCORES_STRIDE);
        sums = queries + rows * padded_dim;
        part = sums + rows * stride;
        scores = part + MAX_ROWS * stride;
    }
};

// Where the keys and values of one chunk and head lie, and their scales. Behind the last blocks stand some that are read
// in vain, as micro-kernels take several, or fetched ahead.
template <class T>
struct Chunk {
    const T *keys[CHUNK_BLOCKS + 2 * find_panels(1)], *values[CHUNK_BLOCKS + 1];
    float key_scales[CHUNK], value_scales[CHUNK];

    // Its blocks [first, last); others are not looked at.
    Chunk(const KVCache<T>& cache, const int32_t* blocks, int64_t head, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            keys[i] = cache.keys(blocks[i], head);
            values[i] = cache.values(blocks[i], head);
            if constexpr (KVCache<T>::HAS_SCALES) {
                std::memcpy(key_scales + i * BLOCK, cache.scales(keys[i]), BLOCK * sizeof(float));
                std::memcpy(value_scales + i * BLOCK, cache.scales(values[i]), BLOCK * sizeof(float));
            }
        }
        std::fill_n(keys + last, 2 * find_panels(1), values[first]);
        values[last] = values[last - 1];
    }
};

template <class T>
struct PagedStep {
    const PagedCall& call;
    const KVCache<T> cache;
    const int64_t stride = sums_stride(call.padded_dim());
    std::vector<Tile> tiles{};
    std::vector<Piece> pieces{};

    // Head by head, so that threads rarely write to the same block.
    void store_new() const {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, call.padded_dim());
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call.num_kv_heads * call.num_tokens; ++i) {
            const int64_t head = i / call.num_tokens, token = i % call.num_tokens;
            call.load_row(call.k, token, head, row);
            call.rotate(token, row);
            cache.store_key(row, call.slots[token], head);
            call.load_row(call.v, token, head, row);
            cache.store_value(row, call.slots[token], head);
        }
    }

    // Among its sequence's keys.
    int64_t position(const Tile& tile, int64_t row) const {
        return call.cache_seqlens[tile.seq] - call.num_queries(tile.seq) + tile.first_query + row / call.group();
    }
    int64_t first_visible(int64_t position) const {
        return call.window >= 0 ? std::max<int64_t>(0, position - call.window) : 0;
    }
    int64_t num_rows(const Tile& tile) const { return tile.num_queries * call.group(); }

    void list_tiles() {
        const int64_t each = std::max<int64_t>(1, TILE_ROWS / call.group());
        for (int64_t seq = 0; seq < call.num_seqs; ++seq)
            for (int64_t head = 0; head < call.num_kv_heads; ++head)
                for (int64_t query = 0; query < call.num_queries(seq); query += each) {
                    Tile tile{seq, head, query, std::min(each, call.num_queries(seq) - query), 0, 0, false, nullptr};
                    tile.first_chunk = first_visible(position(tile, 0)) / CHUNK;
                    tile.last_chunk = position(tile, num_rows(tile) - 1) / CHUNK + 1;
                    tiles.push_back(tile);
                }
    }

    // Tiles as pieces, the longest first. Where tiles are few, the chunks of small ones become pieces of their own.
    void list_pieces() {
        static thread_local std::vector<float> memory;
        const int64_t num_threads = omp_get_max_threads();
        const bool can_split = num_threads > 1 && int64_t(tiles.size()) < 2 * num_threads;
        int64_t num_parts = 0;
        for (Tile& tile : tiles) {
            tile.is_split = can_split && num_rows(tile) <= SPLIT_ROWS && tile.last_chunk - tile.first_chunk > 1;
            if (tile.is_split) num_parts += (tile.last_chunk - tile.first_chunk) * num_rows(tile);
        }
        float* parts = scratch(memory, num_parts * stride);
        for (Tile& tile : tiles) {
            tile.parts = parts;
            const int64_t chunks = tile.last_chunk - tile.first_chunk, each = tile.is_split ? 1 : chunks;
            for (int64_t chunk = tile.first_chunk; chunk < tile.last_chunk; chunk += each)
                pieces.push_back({&tile, chunk, chunk + each});
            if (tile.is_split) parts += chunks * num_rows(tile) * stride;
        }
        std::stable_sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) {
            return a.num_chunks() * a.tile->num_queries > b.num_chunks() * b.tile->num_queries;
        });
    }

    // `rows` rows of a tile, from `first`, against one chunk; what they add up to goes to `sums`.
    template <int ROWS>
    void attend_rows(int64_t rows, const Tile& tile, int64_t first, int64_t chunk, const Chunk<T>& data,
                     const Workspace& space, float* sums) const {
        if constexpr (ROWS > 1)
            if (rows < ROWS) return attend_rows<ROWS - 1>(rows, tile, first, chunk, data, space, sums);
        constexpr int PANELS = find_panels(ROWS);
        constexpr bool HAS_SCALES = KVCache<T>::HAS_SCALES;
        const int64_t start = chunk * CHUNK, padded_dim = call.padded_dim();
        const int64_t begin = std::max<int64_t>(0, first_visible(position(tile, first)) - start);
        const int64_t end = std::min(CHUNK, position(tile, first + ROWS - 1) + 1 - start);
        if (begin >= end) {
            for (int r = 0; r < ROWS; ++r) clear_sums(sums + r * stride, padded_dim);
            return;
        }
        const int64_t first_block = begin / BLOCK, last_block = (end + BLOCK - 1) / BLOCK;
        for (int64_t block = first_block; block < last_block; block += PANELS)
            score_blocks<ROWS, PANELS>(space.queries + first * padded_dim, padded_dim, call.head_dim, data.keys + block,
                                       space.scores + block * BLOCK);
        for (int r = 0; r < ROWS; ++r) {
            const int64_t last_visible = position(tile, first + r) - start;
            weigh_row(space.scores + r * SCORES_STRIDE, first_block * BLOCK, last_block * BLOCK,
                      first_visible(last_visible + start) - start, last_visible + 1, call.softcap,
                      HAS_SCALES ? data.key_scales : nullptr, HAS_SCALES ? data.value_scales : nullptr,
                      sums + r * stride + padded_dim);
        }
        sum_values<ROWS, PANELS>(space.scores, data.values, begin, end, 0, padded_dim / PANEL, sums, stride);
    }

    void load_queries(const Tile& tile, float* queries) const {
        for (int64_t row = 0; row < num_rows(tile); ++row, queries += call.padded_dim()) {
            const int64_t token = call.cu_seqlens[tile.seq] + tile.first_query + row / call.group();
            call.load_row(call.q, token, tile.kv_head * call.group() + row % call.group(), queries);
            call.rotate(token, queries);
            for (int64_t i = 0; i < call.padded_dim(); i += LANES)
                store(queries + i, load(queries + i) * call.softmax_scale);
        }
    }

    void store_result(const Tile& tile, float* sums) const {
        for (int64_t row = 0; row < num_rows(tile); ++row, sums += stride) {
            const int64_t token = call.cu_seqlens[tile.seq] + tile.first_query + row / call.group();
            const int64_t head = tile.kv_head * call.group() + row % call.group();
            const float inverse = 1.0f / sums[call.padded_dim()];
            for (int64_t i = 0; i < call.padded_dim(); i += LANES) store(sums + i, load(sums + i) * inverse);
            write_row(sums, call.out, token, head * call.head_dim, call.head_dim);
        }
    }

    void clear_rows(const Tile& tile, float* sums) const {
        for (int64_t row = 0; row < num_rows(tile); ++row) clear_sums(sums + row * stride, call.padded_dim());
    }

    // One chunk for all rows of a tile: into its parts, or merged into the sums of this thread.
    void attend_chunk(const Tile& tile, int64_t chunk, const Workspace& space) const {
        const int64_t rows = num_rows(tile), num_groups = (rows + MAX_ROWS - 1) / MAX_ROWS;
        const int64_t each = (rows + num_groups - 1) / num_groups, start = chunk * CHUNK;
        const int64_t first = std::max<int64_t>(0, first_visible(position(tile, 0)) - start) / BLOCK;
        const int64_t last = std::min(CHUNK, position(tile, rows - 1) - start + BLOCK) / BLOCK;
        const Chunk<T> data(cache, call.blocks(tile.seq) + chunk * CHUNK_BLOCKS, tile.kv_head, first, last);
        for (int64_t row = 0; row < rows; row += each) {
            const int64_t count = std::min(each, rows - row);
            float* part = tile.is_split ? tile.parts + ((chunk - tile.first_chunk) * rows + row) * stride : space.part;
            attend_rows<MAX_ROWS>(count, tile, row, chunk, data, space, part);
            for (int64_t r = 0; r < count && !tile.is_split; ++r)
                merge_sums(part + r * stride, call.padded_dim(), space.sums + (row + r) * stride);
        }
    }

    void run_piece(const Piece& piece, const Workspace& space) const {
        const Tile& tile = *piece.tile;
        load_queries(tile, space.queries);
        if (!tile.is_split) clear_rows(tile, space.sums);
        for (int64_t chunk = piece.first_chunk; chunk < piece.last_chunk; ++chunk) attend_chunk(tile, chunk, space);
        if (!tile.is_split) store_result(tile, space.sums);
    }

    void merge_parts(const Tile& tile, const Workspace& space) const {
        clear_rows(tile, space.sums);
        const float* part = tile.parts;
        for (int64_t chunk = tile.first_chunk; chunk < tile.last_chunk; ++chunk)
            for (int64_t row = 0; row < num_rows(tile); ++row, part += stride)
                merge_sums(part, call.padded_dim(), space.sums + row * stride);
        store_result(tile, space.sums);
    }

    void run() {
        list_tiles();
        list_pieces();
        const bool is_split = pieces.size() > tiles.size();
#pragma omp parallel
        {
            store_new();
            const Workspace space(std::max(TILE_ROWS, call.group()), call.padded_dim());
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < pieces.size(); ++i) run_piece(pieces[i], space);
            if (is_split) {
#pragma omp for schedule(dynamic)
                for (size_t i = 0; i < tiles.size(); ++i)
                    if (tiles[i].is_split) merge_parts(tiles[i], space);
            }
        }
    }
};

}  // namespace

// Counts the slots, positions, lengths and blocks that are out of range; if any, nothing is read or written.
PADLESS_KERNEL(paged_attention, PagedAttention) {
    const PagedCall paged{
        tokens_of(call.q), tokens_of(call.k), tokens_of(call.v), tokens_of(call.out), data<int64_t>(call.slot_mapping),
        data<int32_t>(call.block_table), data<int32_t>(call.cu_seqlens), data<int32_t>(call.cache_seqlens),
        data<int64_t>(call.position_ids), data<float>(call.rotary), call.q.sizes[0], call.cache_seqlens.sizes[0],
        call.q.sizes[1], call.kv_cache.sizes[3], call.q.sizes[2], call.kv_cache.sizes[1], call.block_table.sizes[1],
        call.rotary.sizes[0], call.rotary.sizes[1], float(call.softmax_scale), call.window, float(call.softcap)};
    const bool has_layer = call.layer >= 0 && call.layer < call.kv_cache.sizes[0];
    const int64_t wrong = has_layer ? count_wrong(paged) : 1;
    if (wrong == 0)
        with_cache_type(call.kv_cache.kind, [&](auto number) {
            using T = decltype(number);
            T* layer = data<T>(call.kv_cache) + call.layer * call.kv_cache.strides[0];
            PagedStep<T>{paged, {layer, paged.num_kv_heads, paged.padded_dim()}}.run();
        });
    return wrong;
}
