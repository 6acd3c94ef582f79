// `padless::gather`: rows of a table by their numbers, scaled, and added to other rows.
#include <atomic>

#include "rows.h"

using namespace padless;

// Rows whose numbers are out of the table are not written; counted is how many those are.
PADLESS_KERNEL(gather, Gather) {
    const Matrix to = rows_of(call.out);
    const int64_t width = padless::width(call.out), num_entries = call.table.sizes[0];
    const float scale = float(call.scale);
    std::atomic<int64_t> num_wrong{0};
    const int64_t num_rows = padless::num_rows(call.out);
    parallel_rows(num_rows, num_rows * width > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, width);
        for (int64_t r = first; r < last; ++r) {
            const int64_t index = data<int64_t>(call.index)[r];
            if (is_out(index, num_entries)) {
                ++num_wrong;
                continue;
            }
            copy_row(rows_of(call.table), index, 0, width, row);
            if (scale != 1.0f)
                for (int64_t i = 0; i < width; ++i) row[i] *= scale;
            if (call.residual.data) add_row(row, rows_of(call.residual), r, 0, width);
            write_row(row, to, r, 0, width);
        }
    });
    return num_wrong;
}
