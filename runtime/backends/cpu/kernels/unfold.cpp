// `padless::unfold`: the rows around each token of its own sequence, copied side by side.
#include "rows.h"

using namespace padless;

namespace {

// Rows of either kind are copied as bytes.
struct Unfolded {
    const char* from;
    char* to;
    int64_t stride_from, stride_to, row_bytes, kernel_size;

    void write_token(int64_t token, int64_t first, int64_t end) const {
        for (int64_t place = 0; place < kernel_size; ++place) {
            const int64_t source = token + place - kernel_size / 2;
            char* row = to + token * stride_to + place * row_bytes;
            if (source >= first && source < end)
                std::memcpy(row, from + source * stride_from, row_bytes);
            else
                std::memset(row, 0, row_bytes);
        }
    }
};

}  // namespace

PADLESS_KERNEL(unfold, Unfold) {
    const Matrix from = rows_of(call.hidden_states), to = rows_of(call.out);
    const int64_t bytes = from.kind == BF16 ? sizeof(BFloat16) : sizeof(float);
    const Unfolded unfolded{static_cast<const char*>(from.data), static_cast<char*>(call.out.data), from.stride * bytes,
                            to.stride * bytes, width(call.hidden_states) * bytes, call.kernel_size};
    const int32_t* cu_seqlens = data<int32_t>(call.cu_seqlens);
    parallel_rows(call.cu_seqlens.sizes[0] - 1, true, [&](int64_t first, int64_t last) {
        for (int64_t seq = first; seq < last; ++seq)
            for (int64_t token = cu_seqlens[seq]; token < cu_seqlens[seq + 1]; ++token)
                unfolded.write_token(token, cu_seqlens[seq], cu_seqlens[seq + 1]);
    });
    return 0;
}
