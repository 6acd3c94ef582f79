// `padless::rotate`: each head of each token turned to its position, in fp32.
#include "rotary.h"
#include "rows.h"

using namespace padless;

PADLESS_KERNEL(rotate, Rotate) {
    const Rotary rotary(call.position_ids, call.table);
    const int64_t wrong = rotary.count_wrong(call.x.sizes[0]) + (rotary.dim > call.x.sizes[2]);
    if (wrong) return wrong;
    const Matrix from = tokens_of(call.x), to = tokens_of(call.out);
    const int64_t num_heads = call.x.sizes[1], head_dim = call.x.sizes[2];
    const int64_t num_tokens = call.x.sizes[0];
    parallel_rows(num_tokens, num_tokens * num_heads * head_dim > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, head_dim);
        for (int64_t token = first; token < last; ++token)
            for (int64_t head = 0; head < num_heads; ++head) {
                copy_row(from, token, head * head_dim, head_dim, row);
                rotary.turn_row(token, row);
                write_row(row, to, token, head * head_dim, head_dim);
            }
    });
    return 0;
}
