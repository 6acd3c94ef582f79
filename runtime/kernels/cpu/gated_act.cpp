// `padless::gated_act`: act(gate) * other of rows that hold one behind the other; in fp32, read once and written once.
#include "activation.h"
#include "rows.h"
#include "tape.h"

using namespace padless;

namespace {

// `row`: 2 * width numbers, of which the first half becomes the result.
void gate_row(float* row, int64_t width, int64_t activation) {
    with_activation(activation, [=](auto act) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(row + i, act(load(row + i)) * load(row + width + i));
        if (i < width)
            store_some(row + i, act(load_some(row + i, width - i)) * load_some(row + width + i, width - i), width - i);
    });
}

}  // namespace

// Strides in elements; `out` may be quantised rows.
extern "C" void padless_gated_act(
    const void* x, int64_t x_stride, int64_t x_kind, int64_t num_rows, int64_t width, int64_t activation, void* out,
    int64_t out_stride, int64_t out_kind, const float* out_inverse_smooth, float out_scale, int64_t out_zero) {
    const Matrix from{x, x_stride, Kind(x_kind)}, to{out, out_stride, Kind(out_kind)};
    const RowScale fixed{out_scale, int32_t(out_zero)};
    const RowScale* scale = out_scale > 0 ? &fixed : nullptr;
#pragma omp parallel
    {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, 2 * width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; ++r) {
            copy_row(from, r, 0, 2 * width, row);
            gate_row(row, width, activation);
            if (to.kind == QUANTISED)
                quantise_row(row, width, out_inverse_smooth, scale, const_cast<uint8_t*>(to.quantised(r)));
            else
                write_row(row, to, r, 0, width);
        }
    }
}

PADLESS_PLAYABLE(gated_act)
