// `padless::experts` over packed weights: rows are grouped by their expert (a counting sort, in the order of tokens), each
// expert's are multiplied at once, and what it gives is added to its tokens.
//
// A token's sum runs over its experts in the order of their numbers, and a linear layer's result does not depend on the rows
// beside it (linear.h): nor does a token's. Tokens are taken PIECE_TOKENS at a time, and an expert's rows PIECE_ROWS, so that
// the memory between stages does not grow with the batch.
#include <algorithm>
#include <cmath>
#include <vector>

#include "linear_bf16.h"
#include "linear_fp32.h"
#include "linear_int8.h"

using namespace padless;

namespace {

constexpr int64_t PIECE_TOKENS = 2048, PIECE_ROWS = 512;

struct Choice {
    int64_t expert;
    float weight;
};

// The `top_k` largest of a token's scores, the largest first and of equal ones the first, with their weights.
void choose(const float* scores, int64_t num_experts, int64_t top_k, bool renormalize, Choice* chosen) {
    for (int64_t expert = 0, count = 0; expert < num_experts; ++expert) {
        int64_t place = count;
        while (place > 0 && scores[expert] > scores[chosen[place - 1].expert]) --place;
        if (place == top_k) continue;
        count = std::min(count + 1, top_k);
        std::copy_backward(chosen + place, chosen + count - 1, chosen + count);
        chosen[place].expert = expert;
    }
    const float largest = scores[chosen[0].expert];
    float total = 0;
    for (int64_t i = 0; i < top_k; ++i) {
        chosen[i].weight = std::exp(scores[chosen[i].expert] - largest);
        total += chosen[i].weight;
    }
    if (!renormalize) {
        total = 0;
        for (int64_t expert = 0; expert < num_experts; ++expert) total += std::exp(scores[expert] - largest);
    }
    for (int64_t i = 0; i < top_k; ++i) chosen[i].weight /= total;
}

// The weights of one of the two layers, each expert's behind that of the one before.
struct Layer {
    const Tensor& packed;
    int64_t num_columns, depth;

    // Into `out` [num_rows, num_columns].
    void multiply(int64_t expert, const Matrix& x, int64_t num_rows, Activation activation, float* out) const {
        const int64_t size = packed.kind == FP32 ? 4 : packed.kind == BF16 ? 2 : 1;
        const char* weight = data<char>(packed) + expert * packed.strides[0] * size;
        const LinearCall call{x,          weight,   num_rows, num_columns, depth, nullptr,
                              activation, Matrix{}, {out, num_columns, FP32}, nullptr, nullptr};
        if (packed.kind == FP32) return run_linear_fp32(call);
        packed.kind == BF16 ? run_linear_bf16(call) : run_linear_int8(call);
    }
};

// Rows of a piece of the tokens, by their expert: row i is token `tokens[i]` with the weight `weights[i]`, and those of an
// expert begin at starts[expert].
struct Groups {
    std::vector<int64_t> starts, tokens;
    std::vector<float> weights;

    void group(const std::vector<Choice>& chosen, int64_t num_experts, int64_t top_k) {
        starts.assign(num_experts + 1, 0);
        for (const Choice& each : chosen) ++starts[each.expert + 1];
        for (int64_t expert = 0; expert < num_experts; ++expert) starts[expert + 1] += starts[expert];
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        tokens.resize(chosen.size());
        weights.resize(chosen.size());
        for (size_t i = 0; i < chosen.size(); ++i) {
            const int64_t row = next[chosen[i].expert]++;
            tokens[row] = int64_t(i) / top_k;
            weights[row] = chosen[i].weight;
        }
    }
};

struct Block {
    const ExpertsPacked& call;
    int64_t hidden_size, up_width;

    explicit Block(const ExpertsPacked& call)
        : call(call), hidden_size(padless::width(call.x)), up_width(call.width * (call.is_gated ? 2 : 1)) {}

    std::vector<Choice> route(const Matrix& x, int64_t num_tokens) const {
        static thread_local std::vector<float> memory;
        float* scores = scratch(memory, num_tokens * call.num_experts);
        run_linear_fp32({x, call.router.data, num_tokens, call.num_experts, hidden_size, nullptr, Activation::NONE, Matrix{},
                         {scores, call.num_experts, FP32}, nullptr, nullptr});
        std::vector<Choice> chosen(num_tokens * call.top_k);
        parallel_rows(num_tokens, num_tokens > 16, [&](int64_t first, int64_t last) {
            for (int64_t token = first; token < last; ++token)
                choose(scores + token * call.num_experts, call.num_experts, call.top_k, call.renormalize,
                       chosen.data() + token * call.top_k);
        });
        return chosen;
    }

    // One expert's rows: gathered, through both layers, and added to the sums of their tokens.
    void run_expert(int64_t expert, const Matrix& x, const int64_t* tokens, const float* weights, int64_t num_rows,
                    float* sums) const {
        static thread_local std::vector<float> rows_memory, wide_memory;
        float* rows = scratch(rows_memory, num_rows * hidden_size);
        float* wide = scratch(wide_memory, num_rows * up_width);
        const auto for_rows = [&](const auto& run_row) {
            parallel_rows(num_rows, num_rows > 16, [&](int64_t first, int64_t last) {
                for (int64_t r = first; r < last; ++r) run_row(r);
            });
        };
        for_rows([&](int64_t r) { copy_row(x, tokens[r], 0, hidden_size, rows + r * hidden_size); });
        const Layer up{call.up, up_width, hidden_size}, down{call.down, hidden_size, call.width};
        up.multiply(expert, {rows, hidden_size, FP32}, num_rows, call.is_gated ? Activation::NONE : call.act, wide);
        if (call.is_gated)
            for_rows([&](int64_t r) { gate_row(wide + r * up_width, call.width, call.act, call.out.kind != FP32); });
        down.multiply(expert, {wide, up_width, FP32}, num_rows, Activation::NONE, rows);
        for_rows([&](int64_t r) { add_scaled(sums + tokens[r] * hidden_size, rows + r * hidden_size, weights[r]); });
    }

    void add_scaled(float* sum, const float* row, float weight) const {
        for (int64_t i = 0; i < hidden_size; ++i) sum[i] += weight * row[i];
    }

    void run_piece(const Matrix& x, const Matrix& out, int64_t num_tokens) const {
        static thread_local std::vector<float> memory;
        float* sums = scratch(memory, num_tokens * hidden_size);
        std::fill(sums, sums + num_tokens * hidden_size, 0.0f);
        Groups groups;
        groups.group(route(x, num_tokens), call.num_experts, call.top_k);
        for (int64_t expert = 0; expert < call.num_experts; ++expert) {
            const int64_t end = groups.starts[expert + 1];
            for (int64_t row = groups.starts[expert]; row < end; row += PIECE_ROWS)
                run_expert(expert, x, &groups.tokens[row], &groups.weights[row], std::min(PIECE_ROWS, end - row), sums);
        }
        for (int64_t token = 0; token < num_tokens; ++token)
            write_row(sums + token * hidden_size, out, token, 0, hidden_size);
    }
};

Matrix rows_from(const Tensor& x, int64_t first) {
    Matrix rows = rows_of(x);
    rows.data = rows.kind == BF16 ? static_cast<const void*>(rows.bf16(first)) : rows.fp32(first);
    return rows;
}

}  // namespace

PADLESS_KERNEL(experts_packed, ExpertsPacked) {
    const Block block(call);
    for (int64_t first = 0; first < num_rows(call.x); first += PIECE_TOKENS)
        block.run_piece(rows_from(call.x, first), rows_from(call.out, first),
                        std::min(PIECE_TOKENS, num_rows(call.x) - first));
    return 0;
}
