// `padless::embed_norm`: the sum of one row of each of several tables, then LayerNorm.
#include <algorithm>
#include <atomic>

#include "norm.h"

using namespace padless;

// Rows whose indices are out of their table are not written; counted is what is.
PADLESS_KERNEL(embed_norm, EmbedNorm) {
    const Matrix to = rows_of(call.out);
    const int64_t width = padless::width(call.out);
    std::atomic<int64_t> num_wrong{0};
    const int64_t num_rows = padless::num_rows(call.out);
    parallel_rows(num_rows, num_rows * width > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, width);
        for (int64_t r = first; r < last; ++r) {
            std::fill(row, row + width, 0.0f);
            bool is_right = true;
            for (int64_t t = 0; t < call.num_tables; ++t) {
                const int64_t index = data<int64_t>(call.indices[t])[r];
                if (index < 0 || index >= call.tables[t].sizes[0]) {
                    ++num_wrong;
                    is_right = false;
                    break;
                }
                add_row(row, rows_of(call.tables[t]), index, 0, width);
            }
            if (!is_right) continue;
            normalise_row(row, width, data<float>(call.weight), data<float>(call.bias), float(call.eps), false);
            write_row(row, to, r, 0, width);
        }
    });
    return num_wrong;
}
