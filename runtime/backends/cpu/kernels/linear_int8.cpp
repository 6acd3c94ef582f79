// `padless::linear_int8`: uint8 rows, quantised here or by whoever made them, times int8 weights; see runtime/ops/linear_int8.py.
#include "gemm_int8.h"
#include "linear_int8.h"

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

void padless::run_linear_int8(const LinearCall& packed) {
    const Int8Weight weight(packed.panels, packed.num_columns);
    LinearCall call = packed;
    call.panels = weight.panels;
    const Int8Source source{call, weight, nullptr, nullptr, quantised_bytes(call.depth), call.x.kind == QUANTISED};
    Linear<Int8Gemm, Int8Source>{call, source}.run();
}

// A scale of 0 is none: each row has its own.
PADLESS_KERNEL(linear_int8_packed, LinearInt8Packed) {
    const Matrix x = rows_of(call.x);
    const Int8Weight weight(call.packed.data, call.out_features);
    const RowScale x_scale{float(call.x_scale), int32_t(call.x_zero)};
    const RowScale out_scale{float(call.out_scale), int32_t(call.out_zero)};
    const LinearCall linear{
        x, weight.panels, num_rows(call.x), call.out_features, call.in_features, data<float>(call.bias), call.act,
        rows_of(call.residual), rows_of(call.out), call.out_scale > 0 ? &out_scale : nullptr,
        data<float>(call.out_inverse_smooth)};
    const Int8Source source{
        linear, weight, data<float>(call.inverse_smooth), call.x_scale > 0 ? &x_scale : nullptr,
        quantised_bytes(call.in_features), x.kind == QUANTISED};
    Linear<Int8Gemm, Int8Source>{linear, source}.run();
    return 0;
}
