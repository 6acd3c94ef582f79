// `padless::linear_int8`: uint8 rows, quantised here or by whoever made them, times int8 weights; see runtime/ops/linear_int8.py.
#include "gemm_int8.h"
#include "linear.h"
#include "tape.h"

using namespace padless;

namespace {

// The packed weight: scales and sums of the columns, then the panels.
struct Int8Weight {
    const float* scales;
    const int32_t* sums;
    const int8_t* panels;

    Int8Weight(const void* packed, int64_t num_columns) {
        const int64_t columns = round_up(num_columns, 2 * PANEL);
        scales = static_cast<const float*>(packed);
        sums = reinterpret_cast<const int32_t*>(scales + columns);
        panels = reinterpret_cast<const int8_t*>(sums + columns);
    }
};

struct Int8Source {
    const LinearCall& call;
    const Int8Weight& weight;
    const float* inverse_smooth;
    const RowScale* x_scale;
    int64_t stride;
    bool is_ready;

    const uint8_t* ready(int64_t row) const { return call.x.quantised(row); }

    void prepare(int64_t first, int64_t rows, uint8_t* prepared) const {
        for (int64_t r = 0; r < rows; ++r)
            quantise_row(call.x, first + r, call.depth, inverse_smooth, x_scale, prepared + r * stride);
    }

    auto scaler(const uint8_t* row) const {
        const RowScale found = row_scale(row, call.depth);
        return [found, scales = weight.scales, offsets = weight.sums](const int32_t* sums, int64_t column) {
            const IntVec total = load_raw<IntVec>(sums) - found.zero * load_raw<IntVec>(offsets + column);
            return __builtin_convertvector(total, Vec) * (found.scale * load(scales + column));
        };
    }
};

}  // namespace

// Strides in elements; in bytes for quantised rows. A null pointer is an argument not given; the scales `x_scale` and
// `out_scale` are those of calibration, {0, 0} for each row its own.
extern "C" void padless_linear_int8(
    const void* x, int64_t x_stride, int64_t x_kind, const void* packed, int64_t num_rows, int64_t num_columns,
    int64_t depth, const float* inverse_smooth, float x_scale, int64_t x_zero, const float* bias, int64_t activation,
    const void* residual, int64_t residual_stride, int64_t residual_kind, void* out, int64_t out_stride, int64_t out_kind,
    const float* out_inverse_smooth, float out_scale, int64_t out_zero) {
    const Int8Weight weight(packed, num_columns);
    const RowScale fixed_x{x_scale, int32_t(x_zero)}, fixed_out{out_scale, int32_t(out_zero)};
    const LinearCall call{
        {x, x_stride, Kind(x_kind)}, weight.panels, num_rows, num_columns, depth, bias, activation,
        {residual, residual_stride, Kind(residual_kind)}, {out, out_stride, Kind(out_kind)},
        out_scale > 0 ? &fixed_out : nullptr, out_inverse_smooth};
    const Int8Source source{
        call, weight, inverse_smooth, x_scale > 0 ? &fixed_x : nullptr, quantised_bytes(depth), x_kind == QUANTISED};
    Linear<Int8Gemm, Int8Source>{call, source}.run();
}

PADLESS_PLAYABLE(linear_int8)
