// `padless::linear_act` in fp32 over packed weights; bf16 rows are widened first.
#include "linear.h"
#include "tape.h"

using namespace padless;

namespace {

struct Fp32Source {
    const LinearCall& call;
    int64_t stride;
    bool is_ready;

    const float* ready(int64_t row) const { return call.x.fp32(row); }

    void prepare(int64_t first, int64_t rows, float* prepared) const {
        for (int64_t r = 0; r < rows; ++r) copy_row(call.x, first + r, 0, call.depth, prepared + r * stride);
    }

    auto scaler(const float*) const {
        return [](const float* sums, int64_t) { return load(sums); };
    }
};

}  // namespace

// Strides in elements. A null pointer is an argument not given.
extern "C" void padless_linear_act(
    const void* x, int64_t x_stride, int64_t x_kind, const void* packed, int64_t num_rows, int64_t num_columns,
    int64_t depth, const float* bias, int64_t activation, const void* residual, int64_t residual_stride,
    int64_t residual_kind, void* out, int64_t out_stride, int64_t out_kind) {
    const LinearCall call{
        {x, x_stride, Kind(x_kind)}, packed, num_rows, num_columns, depth, bias, activation,
        {residual, residual_stride, Kind(residual_kind)}, {out, out_stride, Kind(out_kind)}, nullptr, nullptr};
    const bool is_ready = x_kind == FP32;
    Linear<Fp32Gemm, Fp32Source>{call, {call, is_ready ? x_stride : depth, is_ready}}.run();
}

PADLESS_PLAYABLE(linear_act)
