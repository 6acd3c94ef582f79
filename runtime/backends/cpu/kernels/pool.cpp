// `padless::pool`: one fp32 row per sequence, without the tokens of its prompt and scaled to length 1 if asked.
#include <algorithm>

#include "norm.h"

using namespace padless;

namespace {

template <class T>
inline void take_maximum(float* row, const T* other, int64_t width) {
    for (int64_t i = 0; i < width; ++i) row[i] = std::max(row[i], to_float(other[i]));
}

inline void pool_sequence(const Matrix& x, int64_t first, int64_t end, int64_t width, Pooling mode, float* row) {
    const int64_t start = mode == LAST ? end - 1 : first;
    copy_row(x, start, 0, width, row);
    if (mode == MEAN) {
        for (int64_t r = first + 1; r < end; ++r) add_row(row, x, r, 0, width);
        const float scale = 1.0f / float(end - first);
        for (int64_t i = 0; i < width; ++i) row[i] *= scale;
    }
    if (mode == MAX)
        for (int64_t r = first + 1; r < end; ++r)
            x.kind == BF16 ? take_maximum(row, x.bf16(r), width) : take_maximum(row, x.fp32(r), width);
}

// The first token to pool: behind the prompt, or `end` where a mean or maximum has nothing left.
inline int64_t find_start(int64_t first, int64_t end, int64_t num_prompt_tokens, Pooling mode) {
    if (num_prompt_tokens < end - first) return first + std::max<int64_t>(num_prompt_tokens, 0);
    return mode == MEAN || mode == MAX ? end : first;
}

// As torch.nn.functional.normalize: rows shorter than 1e-12 are divided by that.
inline void scale_to_one(float* row, int64_t width) {
    Vec squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        const Vec value = i + LANES <= width ? load(row + i) : load_some(row + i, width - i);
        squares += value * value;
    }
    const float scale = 1.0f / std::max(__builtin_sqrtf(sum(squares)), 1e-12f);
    for (int64_t i = 0; i < width; ++i) row[i] *= scale;
}

}  // namespace

PADLESS_KERNEL(pool, Pool) {
    const Matrix from = rows_of(call.hidden_states);
    const int64_t width = padless::width(call.out);
    const int32_t *cu_seqlens = data<int32_t>(call.cu_seqlens), *num_prompt_tokens = data<int32_t>(call.num_prompt_tokens);
    parallel_for(num_rows(call.out), true, [&](int64_t seq) {
        float* row = data<float>(call.out) + seq * width;
        const int64_t end = cu_seqlens[seq + 1];
        const int64_t first =
            find_start(cu_seqlens[seq], end, num_prompt_tokens ? num_prompt_tokens[seq] : 0, call.mode);
        if (first < end)
            pool_sequence(from, first, end, width, call.mode, row);
        else
            std::fill(row, row + width, 0.0f);
        if (call.normalize) scale_to_one(row, width);
    });
    return 0;
}
