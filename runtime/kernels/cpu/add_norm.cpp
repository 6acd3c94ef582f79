// `padless::add_norm`: x + residual, then LayerNorm or RMSNorm; in fp32, read once and written once.
#include "norm.h"
#include "tape.h"

using namespace padless;

// Strides in elements; `out` may be quantised rows. A null residual or bias is none. Rows of x may be heads: `heads` of
// them, one behind the other, to each stride.
extern "C" void padless_add_norm(
    const void* x, int64_t x_stride, int64_t x_kind, int64_t heads, const void* residual, int64_t residual_stride,
    int64_t residual_kind, int64_t num_rows, int64_t width, const float* weight, const float* bias, float eps,
    int64_t is_rms, void* out, int64_t out_stride, int64_t out_kind, const float* out_inverse_smooth, float out_scale,
    int64_t out_zero) {
    const Matrix from{x, x_stride, Kind(x_kind)}, other{residual, residual_stride, Kind(residual_kind)};
    const Matrix to{out, out_stride, Kind(out_kind)};
    const RowScale fixed{out_scale, int32_t(out_zero)};
    const RowScale* scale = out_scale > 0 ? &fixed : nullptr;
#pragma omp parallel
    {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; ++r) {
            copy_row(from, r / heads, r % heads * width, width, row);
            if (residual) add_row(row, other, r, 0, width);
            normalise_row(row, width, weight, bias, eps, is_rms != 0);
            if (to.kind == QUANTISED)
                quantise_row(row, width, out_inverse_smooth, scale, const_cast<uint8_t*>(to.quantised(r)));
            else
                write_row(row, to, r, 0, width);
        }
    }
}

PADLESS_PLAYABLE(add_norm)
