// `padless::rotate`: each head of each token turned to its position, in fp32.
#include "rotary.h"
#include "rows.h"

using namespace padless;

namespace {

int64_t count_wrong(const Rotate& call) {
    const int64_t *positions = data<int64_t>(call.position_ids), most = call.table.sizes[0];
    int64_t wrong = call.table.sizes[1] > call.x.sizes[2];
    for (int64_t token = 0; token < call.x.sizes[0]; ++token) wrong += uint64_t(positions[token]) >= uint64_t(most);
    return wrong;
}

}  // namespace

PADLESS_KERNEL(rotate, Rotate) {
    if (const int64_t wrong = count_wrong(call)) return wrong;
    const Matrix from = tokens_of(call.x), to = tokens_of(call.out);
    const int64_t num_heads = call.x.sizes[1], head_dim = call.x.sizes[2], rotary_dim = call.table.sizes[1];
    const float* table = data<float>(call.table);
    const int64_t* positions = data<int64_t>(call.position_ids);
#pragma omp parallel
    {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, head_dim);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < call.x.sizes[0]; ++token)
            for (int64_t head = 0; head < num_heads; ++head) {
                copy_row(from, token, head * head_dim, head_dim, row);
                rotate_row(row, table + positions[token] * rotary_dim, rotary_dim / 2);
                write_row(row, to, token, head * head_dim, head_dim);
            }
    }
    return 0;
}
