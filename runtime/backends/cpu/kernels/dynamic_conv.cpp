// `padless::dynamic_conv`: the rows around each token of its own sequence, weighted head by head, in fp32.
#include <algorithm>
#include <cmath>

#include "rows.h"

using namespace padless;

namespace {

// Weights [heads][places] to [places][heads], of which each head's add up to 1 if `softmax`.
void turn_weights(const float* kernels, int64_t num_heads, int64_t size, bool softmax, float* weights) {
    for (int64_t head = 0; head < num_heads; ++head) {
        const float* kernel = kernels + head * size;
        const float largest = softmax ? *std::max_element(kernel, kernel + size) : 0.0f;
        float total = 0.0f;
        for (int64_t place = 0; place < size; ++place) {
            const float weight = softmax ? std::exp(kernel[place] - largest) : kernel[place];
            weights[place * num_heads + head] = weight;
            total += weight;
        }
        for (int64_t place = 0; softmax && place < size; ++place) weights[place * num_heads + head] /= total;
    }
}

void add_weighted(const float* row, const float* weights, int64_t num_heads, int64_t head_dim, float* sums) {
    if (head_dim == 1)
        for (int64_t i = 0; i < num_heads; ++i) sums[i] += weights[i] * row[i];
    else
        for (int64_t head = 0; head < num_heads; ++head)
            for (int64_t i = head * head_dim; i < (head + 1) * head_dim; ++i) sums[i] += weights[head] * row[i];
}

struct Convolution {
    Matrix values, kernels, out;
    int64_t width, num_heads, size, num_kernels;
    bool softmax;

    // `memory`: of two rows, a token's kernels and its weights, which are there already where all tokens share them.
    void run_token(int64_t token, int64_t first, int64_t end, float* memory) const {
        float *sums = memory, *row = sums + width, *kernel = row + width, *weights = kernel + num_heads * size;
        if (num_kernels > 1) load_weights(token, kernel, weights);
        std::fill(sums, sums + width, 0.0f);
        for (int64_t place = 0; place < size; ++place) {
            const int64_t source = token + place - size / 2;
            if (source < first || source >= end) continue;
            copy_row(values, source, 0, width, row);
            add_weighted(row, weights + place * num_heads, num_heads, width / num_heads, sums);
        }
        write_row(sums, out, token, 0, width);
    }

    void load_weights(int64_t token, float* kernel, float* weights) const {
        copy_row(kernels, token, 0, num_heads * size, kernel);
        turn_weights(kernel, num_heads, size, softmax, weights);
    }
};

}  // namespace

PADLESS_KERNEL(dynamic_conv, DynamicConv) {
    const int64_t width = padless::width(call.values), num_heads = padless::width(call.kernels) / call.kernel_size;
    const Convolution convolution{rows_of(call.values), rows_of(call.kernels), rows_of(call.out), width, num_heads,
                                  call.kernel_size, call.kernels.sizes[0], call.softmax != 0};
    const int32_t* cu_seqlens = data<int32_t>(call.cu_seqlens);
    parallel_rows(call.cu_seqlens.sizes[0] - 1, true, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> memory;
        const int64_t num_weights = num_heads * call.kernel_size;
        float* own = scratch(memory, 2 * (width + num_weights));
        convolution.load_weights(0, own + 2 * width, own + 2 * width + num_weights);
        for (int64_t seq = first; seq < last; ++seq)
            for (int64_t token = cu_seqlens[seq]; token < cu_seqlens[seq + 1]; ++token)
                convolution.run_token(token, cu_seqlens[seq], cu_seqlens[seq + 1], own);
    });
    return 0;
}
