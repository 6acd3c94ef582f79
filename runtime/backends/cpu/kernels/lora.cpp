// `padless::lora`: what its adapter adds to each row, then the activation; in fp32, read once and written once.
//
// A row's numbers depend on that row alone, whichever adapters those beside it have: each is summed by itself. The few
// numbers between an adapter's two matrices are too few for a GEMM, whose panels are 16 columns wide.
#include <algorithm>

#include "activation.h"
#include "rows.h"

using namespace padless;

namespace {

constexpr int64_t RANKS = 4;  // of `down` that are multiplied at once

// The products of x with COUNT rows of `down`.
template <int COUNT, class T>
void multiply(const T* x, const float* down, int64_t width, float* products) {
    Vec sums[COUNT] = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec v = load(x + i);
        for (int j = 0; j < COUNT; ++j) sums[j] += v * load(down + j * width + i);
    }
    if (i < width) {
        const Vec v = load_some(x + i, width - i);
        for (int j = 0; j < COUNT; ++j) sums[j] += v * load_some(down + j * width + i, width - i);
    }
    for (int j = 0; j < COUNT; ++j) products[j] = sum(sums[j]);
}

template <class T>
void multiply_all(const T* x, const float* down, int64_t rank, int64_t width, float* products) {
    int64_t j = 0;
    for (; j + RANKS <= rank; j += RANKS) multiply<RANKS>(x, down + j * width, width, products + j);
    for (; j < rank; ++j) multiply<1>(x, down + j * width, width, products + j);
}

struct Adapters {
    const Lora& call;
    const int64_t rank = call.up.sizes[1], width = call.up.sizes[2], depth = padless::width(call.x);
    const Matrix x = rows_of(call.x);

    // The low-rank numbers of a row.
    void narrow(int64_t row, int64_t adapter, float* products) const {
        if (!call.down.data) return copy_row(x, row, 0, rank, products);
        const float* down = data<float>(call.down) + adapter * rank * depth;
        if (x.kind == BF16)
            multiply_all(x.bf16(row), down, rank, depth, products);
        else
            multiply_all(x.fp32(row), down, rank, depth, products);
    }

    void add(int64_t adapter, const float* products, float* row) const {
        const float* up = data<float>(call.up) + adapter * rank * width;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            Vec v = load(row + i);
            for (int64_t j = 0; j < rank; ++j) v += products[j] * load(up + j * width + i);
            store(row + i, v);
        }
        for (; i < width; ++i)
            for (int64_t j = 0; j < rank; ++j) row[i] += products[j] * up[j * width + i];
    }
};

void activate(float* row, int64_t width, Activation activation, bool is_narrow) {
    with_activation(activation, is_narrow, [=](auto act) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(row + i, act(load(row + i)));
        if (i < width) store_some(row + i, act(load_some(row + i, width - i)), width - i);
    });
}

int64_t count_wrong(const Lora& call) {
    const int64_t *ids = data<int64_t>(call.adapter_ids), count = num_rows(call.rows);
    return std::count_if(ids, ids + count, [&](int64_t id) { return uint64_t(id) > uint64_t(call.up.sizes[0]); });
}

}  // namespace

PADLESS_KERNEL(lora, Lora) {
    if (const int64_t wrong = count_wrong(call)) return wrong;
    const Adapters adapters{call};
    const Matrix from = rows_of(call.rows), to = rows_of(call.out);
    const int64_t* ids = data<int64_t>(call.adapter_ids);
    parallel_rows(num_rows(call.rows), true, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> row_memory, product_memory;
        float* row = scratch(row_memory, adapters.width);
        float* products = scratch(product_memory, adapters.rank);
        for (int64_t r = first; r < last; ++r) {
            copy_row(from, r, 0, adapters.width, row);
            if (ids[r] > 0) {
                adapters.narrow(r, ids[r] - 1, products);
                adapters.add(ids[r] - 1, products, row);
            }
            if (call.act != Activation::NONE) activate(row, adapters.width, call.act, to.kind != FP32);
            write_row(row, to, r, 0, adapters.width);
        }
    });
    return 0;
}
