// `padless::embed_norm`: the sum of one row of each of several tables, then LayerNorm.
#include <algorithm>
#include <atomic>

#include "norm.h"
#include "tape.h"

using namespace padless;

// `tables`: num_tables pointers to [num_entries[i], width]; `indices`: as many pointers to int64 [num_rows].
// Returns the number of indices that were out of their table; their rows are not written.
extern "C" int64_t padless_embed_norm(
    const void* const* tables, const int64_t* const* indices, const int64_t* num_entries, int64_t num_tables,
    int64_t table_kind, int64_t num_rows, int64_t width, const float* weight, const float* bias, float eps, void* out,
    int64_t out_stride, int64_t out_kind) {
    const Matrix to{out, out_stride, Kind(out_kind)};
    std::atomic<int64_t> num_wrong{0};
#pragma omp parallel
    {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; ++r) {
            std::fill(row, row + width, 0.0f);
            bool is_right = true;
            for (int64_t t = 0; t < num_tables; ++t) {
                const int64_t index = indices[t][r];
                if (index < 0 || index >= num_entries[t]) {
                    ++num_wrong;
                    is_right = false;
                    break;
                }
                add_row(row, Matrix{tables[t], width, Kind(table_kind)}, index, 0, width);
            }
            if (!is_right) continue;
            normalise_row(row, width, weight, bias, eps, false);
            write_row(row, to, r, 0, width);
        }
    }
    return num_wrong;
}

PADLESS_PLAYABLE(embed_norm)
