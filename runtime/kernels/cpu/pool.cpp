// `padless::pool`: one fp32 row per sequence, without the tokens of its prompt and scaled to length 1 if asked.
#include <algorithm>

#include "norm.h"
#include "tape.h"

using namespace padless;

namespace {

enum Pooling : int64_t { MEAN, MAX, CLS, LAST };

template <class T>
inline void take_maximum(float* row, const T* other, int64_t width) {
    for (int64_t i = 0; i < width; ++i) row[i] = std::max(row[i], to_float(other[i]));
}

inline void pool_sequence(const Matrix& x, int64_t first, int64_t end, int64_t width, int64_t mode, float* row) {
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
inline int64_t find_start(int64_t first, int64_t end, int64_t num_prompt_tokens, int64_t mode) {
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

extern "C" void padless_pool(
    const void* x, int64_t x_stride, int64_t x_kind, const int32_t* cu_seqlens, int64_t num_seqs, int64_t width,
    int64_t mode, int64_t normalize, const int32_t* num_prompt_tokens, float* out) {
    const Matrix from{x, x_stride, Kind(x_kind)};
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t seq = 0; seq < num_seqs; ++seq) {
        float* row = out + seq * width;
        const int64_t end = cu_seqlens[seq + 1];
        const int64_t first = find_start(cu_seqlens[seq], end, num_prompt_tokens ? num_prompt_tokens[seq] : 0, mode);
        if (first < end)
            pool_sequence(from, first, end, width, mode, row);
        else
            std::fill(row, row + width, 0.0f);
        if (normalize) scale_to_one(row, width);
    }
}

PADLESS_PLAYABLE(pool)
