// `padless::gated_act`: act(gate) * other of rows that hold one behind the other; in fp32, read once and written once.
#include "activation.h"
#include "rows.h"

using namespace padless;

PADLESS_KERNEL(gated_act, GatedAct) {
    const Matrix from = rows_of(call.x), to = rows_of(call.out);
    const int64_t width = padless::width(call.x) / 2;
    const float* inverse_smooth = data<float>(call.out_inverse_smooth);
    const RowScale fixed{float(call.out_scale), int32_t(call.out_zero)};
    const RowScale* scale = call.out_scale > 0 ? &fixed : nullptr;
    const int64_t num_rows = padless::num_rows(call.x);
    parallel_rows(num_rows, num_rows * width > MANY_VALUES, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        float* row = scratch(memory, 2 * width);
        for (int64_t r = first; r < last; ++r) {
            copy_row(from, r, 0, 2 * width, row);
            gate_row(row, width, call.act, to.kind != FP32);
            if (to.kind == QUANTISED)
                quantise_row(row, width, inverse_smooth, scale, const_cast<uint8_t*>(to.quantised(r)));
            else
                write_row(row, to, r, 0, width);
        }
    });
    return 0;
}
