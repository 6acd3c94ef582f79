// `padless::store_kv`: the keys and values of new tokens into their slots, keys turned to the tokens' positions.
#include "kv_cache.h"
#include "rotary.h"

using namespace padless;

namespace {

// How many slots and positions point out of their memory; a layer that is none counts as one.
int64_t count_wrong(const StoreKv& call, const Rotary& rotary) {
    if (is_out(call.layer, call.kv_cache.sizes[0])) return 1;
    const int64_t num_tokens = call.k.sizes[0], num_slots = call.kv_cache.sizes[1] * BLOCK;
    int64_t wrong = rotary.count_wrong(num_tokens);
    for (int64_t token = 0; token < num_tokens; ++token) wrong += is_out(data<int64_t>(call.slot_mapping)[token], num_slots);
    return wrong;
}

// Head by head, so that threads rarely write to the same block.
template <class T>
void store_all(const StoreKv& call, const Rotary& rotary, const KVCache<T>& cache) {
    const Matrix keys = tokens_of(call.k), values = tokens_of(call.v);
    const int64_t num_tokens = call.k.sizes[0], head_dim = call.k.sizes[2];
    const int64_t* slots = data<int64_t>(call.slot_mapping);
    const int64_t num_rows = cache.num_kv_heads * num_tokens;
    parallel_rows(num_rows, num_rows * head_dim > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, cache.padded_dim);
        for (int64_t i = first; i < last; ++i) {
            const int64_t head = i / num_tokens, token = i % num_tokens;
            load_head(keys, token, head, head_dim, row);
            rotary.turn_row(token, row);
            cache.store_key(row, slots[token], head);
            load_head(values, token, head, head_dim, row);
            cache.store_value(row, slots[token], head);
        }
    });
}

}  // namespace

// Counts the slots, positions and layers that are out of range; if any, nothing is written.
PADLESS_KERNEL(store_kv, StoreKv) {
    const Rotary rotary(call.position_ids, call.rotary);
    const int64_t wrong = count_wrong(call, rotary);
    if (wrong == 0)
        with_layer(call.kv_cache, call.layer, call.k.sizes[2],
                   [&](const auto& cache) { store_all(call, rotary, cache); });
    return wrong;
}
