// `padless::linear_act` over packed weights: in fp32, where bf16 rows are widened first, or as in linear_bf16.cpp.
#include "linear_bf16.h"
#include "linear_fp32.h"

using namespace padless;

void padless::run_linear_fp32(const LinearCall& call) {
    const Fp32Source source(call);
    Linear<Fp32Gemm, Fp32Source>{call, source}.run();
}

PADLESS_KERNEL(linear_act_packed, LinearActPacked) {
    const LinearCall linear{
        rows_of(call.x), call.packed.data, num_rows(call.x), call.out_features, width(call.x), data<float>(call.bias), call.act,
        rows_of(call.residual), rows_of(call.out), nullptr, nullptr};
    if (call.packed.kind == BF16) {
        run_linear_bf16(linear);
        return 0;
    }
    run_linear_fp32(linear);
    return 0;
}
