// `padless::paged_attention`: each new token looks at the keys and values of its sequence in the cache.
//
// Blocks are multiplied where they lie: a block of keys is a panel of a GEMM, and so are 16 columns of its values. The
// query heads that share a kv head are rows of one task, so that its blocks are read once for all of them. Nothing is read
// of keys before a task's window or behind its last key: whatever lies there, NaN too, does not matter.

#include "paged_attention.h"

using namespace padless;

namespace {

constexpr int64_t TILE_ROWS = 96;
constexpr int64_t SPLIT_ROWS = 16;  // a tile of no more rows may have its chunks taken by several threads

struct PagedCall {
    Matrix q, out;  // [tokens, heads * head_dim]; a head's numbers lie together
    const int32_t *block_table, *cu_seqlens, *cache_seqlens;
    Rotary rotary;
    int64_t num_tokens, num_seqs, num_heads, num_kv_heads, head_dim, num_blocks, max_blocks;
    float softmax_scale;
    bool is_causal;
    int64_t window;     // -1: none
    float softcap;      // 0: none
    const float* bias;  // [num_heads, reach], by how far a key lies behind its query; may be null
    int64_t reach;

    int64_t padded_dim() const { return round_up(head_dim, PANEL); }
    int64_t group() const { return num_heads / num_kv_heads; }
    const int32_t* blocks(int64_t seq) const { return block_table + seq * max_blocks; }
    int64_t num_used_blocks(int64_t seq) const { return round_up(cache_seqlens[seq], BLOCK) / BLOCK; }
    bool have_same_keys(int64_t seq, int64_t other) const {
        return cache_seqlens[seq] == cache_seqlens[other] &&
               std::equal(blocks(seq), blocks(seq) + num_used_blocks(seq), blocks(other));
    }
};

// Tokens that look at the keys of a sequence, in all heads of a group: row i is token first_token + i / group. Of its
// neighbours too, where these have the same keys and see them all.
struct Tile {
    int64_t seq, kv_head, first_token, num_tokens;
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

// How many positions, lengths and blocks point out of their memory, or out of the bias.
int64_t count_wrong(const PagedCall& call) {
    const int64_t longest = std::min(call.max_blocks * BLOCK, call.bias ? call.reach : INT64_MAX);
    int64_t wrong = call.rotary.count_wrong(call.num_tokens);
    for (int64_t seq = 0; seq < call.num_seqs; ++seq) {
        const int64_t first = call.cu_seqlens[seq], last = call.cu_seqlens[seq + 1], length = call.cache_seqlens[seq];
        const int64_t shortest = call.is_causal ? last - first : 0;
        if (first < 0 || last < first || last > call.num_tokens || length < shortest || length > longest)
            ++wrong;
        else
            for (int64_t i = 0; i < call.num_used_blocks(seq); ++i) wrong += is_out(call.blocks(seq)[i], call.num_blocks);
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

    // The last key that a row sees, -1 for none: the token itself, or its sequence's last.
    int64_t last_visible(const Tile& tile, int64_t row) const {
        const int64_t last = call.cache_seqlens[tile.seq] - 1;
        if (!call.is_causal) return last;
        return last - (call.cu_seqlens[tile.seq + 1] - 1) + tile.first_token + row / call.group();
    }
    int64_t first_visible(int64_t last) const {
        return call.window >= 0 ? std::max<int64_t>(0, last - call.window) : 0;
    }
    int64_t num_rows(const Tile& tile) const { return tile.num_tokens * call.group(); }

    // The first sequence behind one that looks at other keys. Beams look at one source, whose blocks are read once for all.
    int64_t find_next(int64_t seq) const {
        int64_t next = seq + 1;
        while (!call.is_causal && next < call.num_seqs && call.have_same_keys(seq, next)) ++next;
        return next;
    }

    void list_tiles() {
        for (int64_t seq = 0, next; seq < call.num_seqs; seq = next) {
            next = find_next(seq);
            for (int64_t head = 0; head < call.num_kv_heads; ++head)
                list_tiles(seq, head, call.cu_seqlens[seq], call.cu_seqlens[next]);
        }
    }

    void list_tiles(int64_t seq, int64_t head, int64_t token, int64_t end) {
        const int64_t each = std::max<int64_t>(1, TILE_ROWS / call.group());
        for (; token < end; token += each) {
            Tile tile{seq, head, token, std::min(each, end - token), 0, 0, false, nullptr};
            tile.first_chunk = first_visible(last_visible(tile, 0)) / CHUNK;
            tile.last_chunk = round_up(last_visible(tile, num_rows(tile) - 1) + 1, CHUNK) / CHUNK;
            tiles.push_back(tile);
        }
    }

    // Tiles as pieces, the longest first. Where tiles are few, the chunks of small ones become pieces of their own.
    void list_pieces() {
        static thread_local std::vector<float> memory;
        const int64_t num_threads = count_threads();
        const bool can_split = num_threads > 1 && int64_t(tiles.size()) < 2 * num_threads;
        int64_t num_parts = 0;
        for (Tile& tile : tiles) {
            tile.is_split = can_split && num_rows(tile) <= SPLIT_ROWS && tile.last_chunk - tile.first_chunk > 1;
            if (tile.is_split) num_parts += (tile.last_chunk - tile.first_chunk) * num_rows(tile);
        }
        float* parts = scratch(memory, num_parts * stride);
        for (Tile& tile : tiles) {
            tile.parts = parts;
            if (tile.is_split) {
                for (int64_t chunk = tile.first_chunk; chunk < tile.last_chunk; ++chunk)
                    pieces.push_back({&tile, chunk, chunk + 1});
                parts += (tile.last_chunk - tile.first_chunk) * num_rows(tile) * stride;
            } else
                pieces.push_back({&tile, tile.first_chunk, tile.last_chunk});
        }
        std::stable_sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) {
            return a.num_chunks() * a.tile->num_tokens > b.num_chunks() * b.tile->num_tokens;
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
        const int64_t begin = std::max<int64_t>(0, first_visible(last_visible(tile, first)) - start);
        const int64_t end = std::min(CHUNK, last_visible(tile, first + ROWS - 1) + 1 - start);
        if (begin >= end) {
            for (int r = 0; r < ROWS; ++r) clear_sums(sums + r * stride, padded_dim);
            return;
        }
        const int64_t first_block = begin / BLOCK, last_block = (end + BLOCK - 1) / BLOCK;
        for (int64_t block = first_block; block < last_block; block += PANELS)
            score_blocks<ROWS, PANELS>(space.queries + first * padded_dim, padded_dim, call.head_dim, data.keys + block,
                                       space.scores + block * BLOCK);
        for (int r = 0; r < ROWS; ++r) {
            const int64_t last = last_visible(tile, first + r);
            weigh_row(space.scores + r * SCORES_STRIDE, first_block * BLOCK, last_block * BLOCK,
                      first_visible(last) - start, last + 1 - start, call.softcap, find_bias(tile, first + r),
                      HAS_SCALES ? data.key_scales : nullptr, HAS_SCALES ? data.value_scales : nullptr,
                      sums + r * stride + padded_dim);
        }
        sum_values<ROWS, PANELS>(space.scores, data.values, begin, end, 0, padded_dim / PANEL, sums, stride);
    }

    int64_t find_token(const Tile& tile, int64_t row) const { return tile.first_token + row / call.group(); }
    int64_t find_head(const Tile& tile, int64_t row) const { return tile.kv_head * call.group() + row % call.group(); }
    const float* find_bias(const Tile& tile, int64_t row) const {
        return call.bias ? call.bias + find_head(tile, row) * call.reach : nullptr;
    }

    void load_queries(const Tile& tile, float* queries) const {
        for (int64_t row = 0; row < num_rows(tile); ++row, queries += call.padded_dim()) {
            const int64_t token = find_token(tile, row);
            load_head(call.q, token, find_head(tile, row), call.head_dim, queries);
            call.rotary.turn_row(token, queries);
            for (int64_t i = 0; i < call.padded_dim(); i += LANES)
                store(queries + i, load(queries + i) * call.softmax_scale);
        }
    }

    void store_result(const Tile& tile, float* sums) const {
        for (int64_t row = 0; row < num_rows(tile); ++row, sums += stride) {
            const float total = sums[call.padded_dim()], inverse = total == 0 ? 0 : 1 / total;  // 0: it saw no key
            for (int64_t i = 0; i < call.padded_dim(); i += LANES) store(sums + i, load(sums + i) * inverse);
            write_row(sums, call.out, find_token(tile, row), find_head(tile, row) * call.head_dim, call.head_dim);
        }
    }

    void clear_rows(const Tile& tile, float* sums) const {
        for (int64_t row = 0; row < num_rows(tile); ++row) clear_sums(sums + row * stride, call.padded_dim());
    }

    // One chunk for all rows of a tile: into its parts, or merged into the sums of this thread.
    void attend_chunk(const Tile& tile, int64_t chunk, const Workspace& space) const {
        const int64_t rows = num_rows(tile), num_groups = (rows + MAX_ROWS - 1) / MAX_ROWS;
        const int64_t each = (rows + num_groups - 1) / num_groups, start = chunk * CHUNK;
        const int64_t first = std::max<int64_t>(0, first_visible(last_visible(tile, 0)) - start) / BLOCK;
        const int64_t last = std::min(CHUNK, last_visible(tile, rows - 1) - start + BLOCK) / BLOCK;
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

    // Products of all rows with the keys of their chunks, and as many with the values.
    bool has_many() const {
        int64_t num_chunks = 0;
        for (const Piece& piece : pieces) num_chunks += piece.num_chunks() * num_rows(*piece.tile);
        return 2 * num_chunks * CHUNK * call.padded_dim() > MANY_PRODUCTS;
    }

    void run() {
        list_tiles();
        list_pieces();
        const bool is_split = pieces.size() > tiles.size();
        const bool has_many = this->has_many();
        const auto find_space = [&] { return Workspace(std::max(TILE_ROWS, call.group()), call.padded_dim()); };
        parallel_for(pieces.size(), has_many, [&](int64_t piece) { run_piece(pieces[piece], find_space()); });
        if (!is_split) return;
        parallel_for(tiles.size(), has_many, [&](int64_t tile) {
            if (tiles[tile].is_split) merge_parts(tiles[tile], find_space());
        });
    }
};

template <class T>
void run(const PagedCall& call, const KVCache<T>& cache) {
    PagedStep<T>{call, cache}.run();
}

}  // namespace

// Counts the positions, lengths and blocks that are out of range; if any, nothing is read or written.
PADLESS_KERNEL(paged_attention, PagedAttention) {
    const PagedCall paged{
        tokens_of(call.q), tokens_of(call.out), data<int32_t>(call.block_table), data<int32_t>(call.cu_seqlens),
        data<int32_t>(call.cache_seqlens), Rotary(call.position_ids, call.rotary), call.q.sizes[0],
        call.cache_seqlens.sizes[0], call.q.sizes[1], call.kv_cache.sizes[3], call.q.sizes[2], call.kv_cache.sizes[1],
        call.block_table.sizes[1], float(call.softmax_scale), call.causal != 0, call.window, float(call.softcap),
        data<float>(call.bias), call.bias.sizes[1]};
    const int64_t wrong = is_out(call.layer, call.kv_cache.sizes[0]) ? 1 : count_wrong(paged);
    if (wrong == 0)
        with_layer(call.kv_cache, call.layer, paged.head_dim, [&](const auto& cache) { run(paged, cache); });
    return wrong;
}
