// `padless::linear_act` over packed weights: in fp32, where bf16 rows are widened first, or as in linear_bf16.cpp.
#include "linear.h"
#include "linear_bf16.h"

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

PADLESS_KERNEL(linear_act_packed, LinearActPacked) {
    const Matrix x = rows_of(call.x);
    const LinearCall linear{
        x, call.packed.data, num_rows(call.x), call.out_features, width(call.x), data<float>(call.bias), call.act,
        rows_of(call.residual), rows_of(call.out), nullptr, nullptr};
    if (call.packed.kind == BF16) {
        run_linear_bf16(linear);
        return 0;
    }
    const bool is_ready = x.kind == FP32;
    Linear<Fp32Gemm, Fp32Source>{linear, {linear, is_ready ? x.stride : linear.depth, is_ready}}.run();
    return 0;
}
