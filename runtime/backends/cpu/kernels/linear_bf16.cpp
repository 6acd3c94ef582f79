// `padless::linear_act` over packed bf16 weights, with sums in fp32. Rows are bf16 where the CPU multiplies them, else fp32.
#include "gemm_bf16.h"
#include "linear_bf16.h"

using namespace padless;

namespace {

using Input = Bf16Gemm::Input;
constexpr Kind READY = sizeof(Input) == 2 ? BF16 : FP32;

struct Bf16Source {
    const LinearCall& call;
    int64_t stride;
    bool is_ready;

    const Input* ready(int64_t row) const { return static_cast<const Input*>(call.x.data) + row * stride; }

    void prepare(int64_t first, int64_t rows, Input* prepared) const {
        for (int64_t r = 0; r < rows; ++r, prepared += stride) {
            prepare_row(first + r, prepared);
            std::fill(prepared + call.depth, prepared + stride, Input{});
        }
    }

    void prepare_row(int64_t row, float* prepared) const { copy_row(call.x, row, 0, call.depth, prepared); }

    void prepare_row(int64_t row, BFloat16* prepared) const {
        if (call.x.kind == BF16)
            std::memcpy(prepared, call.x.bf16(row), call.depth * sizeof(BFloat16));
        else
            write_row(call.x.fp32(row), prepared, call.depth);
    }

    auto scaler(const Input*) const {
        return [](const float* sums, int64_t) { return load(sums); };
    }
};

}  // namespace

void padless::run_linear_bf16(const LinearCall& call) {
    const int64_t padded = round_up(call.depth, Bf16Gemm::PADDING);
    const bool is_ready = call.x.kind == READY && call.depth == padded;  // else zeros have to stand behind each row
    Linear<Bf16Gemm, Bf16Source>{call, {call, is_ready ? call.x.stride : padded, is_ready}}.run();
}
