// `padless::add_norm`: x + residual, then LayerNorm or RMSNorm; in fp32, read once and written once.
#include "norm.h"

using namespace padless;

// Rows of a three-dimensional x are heads: one behind the other within a token, however far the tokens are apart.
PADLESS_KERNEL(add_norm, AddNorm) {
    const int64_t width = padless::width(call.x), heads = call.x.num_dims == 3 ? call.x.sizes[1] : 1;
    const Matrix from = call.x.num_dims == 3 ? tokens_of(call.x) : rows_of(call.x);
    const Matrix other = rows_of(call.residual), to = rows_of(call.out);
    const float *inverse_smooth = data<float>(call.out_inverse_smooth);
    const RowScale fixed{float(call.out_scale), int32_t(call.out_zero)};
    const RowScale* scale = call.out_scale > 0 ? &fixed : nullptr;
    const int64_t num_rows = padless::num_rows(call.x);
    parallel_rows(num_rows, num_rows * width > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, width);
        for (int64_t r = first; r < last; ++r) {
            copy_row(from, r / heads, r % heads * width, width, row);
            if (other.data) add_row(row, other, r, 0, width);
            normalise_row(row, width, data<float>(call.weight), data<float>(call.bias), float(call.eps), call.is_rms);
            if (to.kind == QUANTISED)
                quantise_row(row, width, inverse_smooth, scale, const_cast<uint8_t*>(to.quantised(r)));
            else
                write_row(row, to, r, 0, width);
        }
    });
    return 0;
}
