// `padless::max_logits` over a packed table: a linear layer whose results are only compared. Each thread takes a group of
// columns and goes through all rows with it, so that a part of the table is read once, and no logits are kept.
#include <vector>

#include "linear_fp32.h"

using namespace padless;

namespace {

// NaN is larger than anything, and stays.
inline void keep_larger(const float* values, int64_t count, float* largest) {
    for (int64_t i = 0; i < count; ++i)
        largest[i] = values[i] > largest[i] || values[i] != values[i] ? values[i] : largest[i];
}

}  // namespace

PADLESS_KERNEL(max_logits_packed, MaxLogitsPacked) {
    const LinearCall linear{
        rows_of(call.rows), call.packed.data, num_rows(call.rows), call.vocab_size, width(call.rows), data<float>(call.bias),
        Activation::NONE, Matrix{}, Matrix{}, nullptr, nullptr};
    const Fp32Source source(linear);
    const Linear<Fp32Gemm, Fp32Source> layer{linear, source};
    const int32_t* cu_seqlens = data<int32_t>(call.cu_seqlens);
    float* out = data<float>(call.out);
    const int64_t num_panels = layer.num_panels(), num_seqs = padless::num_rows(call.out);
    parallel_for((num_panels + GROUP - 1) / GROUP, true, [&](int64_t group) {
        static thread_local std::vector<float> memory;
        const int64_t first = group * GROUP, last = std::min(first + GROUP, num_panels), column = first * PANEL;
        const int64_t count = std::min(last * PANEL, call.vocab_size) - column;
        float* logits = scratch(memory, BLOCK_ROWS * call.vocab_size);
        for (int64_t seq = 0; seq < num_seqs; ++seq) {
            float* largest = out + seq * call.vocab_size + column;
            std::fill(largest, largest + count, -__builtin_inff());
            for (int64_t row = cu_seqlens[seq]; row < cu_seqlens[seq + 1]; row += BLOCK_ROWS) {
                const int64_t rows = std::min<int64_t>(BLOCK_ROWS, cu_seqlens[seq + 1] - row);
                layer.run_block(source.ready(row), row, rows, first, last, {logits, call.vocab_size, FP32}, 0);
                for (int64_t r = 0; r < rows; ++r) keep_larger(logits + r * call.vocab_size + column, count, largest);
            }
        }
    });
    return 0;
}
