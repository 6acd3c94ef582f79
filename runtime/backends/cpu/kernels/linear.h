// A linear layer by blocks of rows: prepare the rows (quantise, widen), multiply them with every panel, and finish each
// tile while it is in cache: bias, activation, residual, type. Shared by `linear_act` (fp32), `linear_bf16`
// and `linear_int8`.
//
// Work is cut by rows if there are enough of them, so that one thread takes a block through all stages in its cache; else by
// rows and columns, stage by stage. An element's sum runs over k in one order either way: the result depends neither on
// the threads nor on the other rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "gemm.h"

namespace padless {

constexpr int64_t BLOCK_ROWS = LANES == 16 ? 64 : 48;  // a multiple of 16, and of the rows of every micro-kernel but one
constexpr int64_t GROUP = 24;  // panels

struct LinearCall {
    Matrix x;
    const void* panels;
    int64_t num_rows, num_columns, depth;
    const float* bias;  // [num_columns, rounded up to 16]
    Activation activation;
    Matrix residual;  // no data: none
    Matrix out;       // QUANTISED: rows are quantised after all their columns are known
    const RowScale* out_scale;
    const float* out_inverse_smooth;
};

// `Source` knows how rows are prepared and how sums become floats:
//     prepare(first_row, num_rows, Input* prepared)    into rows of `stride` inputs; not called if `is_ready`
//     is_ready, ready(row), stride
//     scaler(prepared row)                             a function (sums, column) -> vec of values
template <class Gemm, class Source>
struct Linear {
    using Input = typename Gemm::Input;
    using Sum = typename Gemm::Sum;
    using Weight = typename Gemm::Weight;

    const LinearCall& call;
    const Source& source;

    template <class G, int ROWS, int PANELS>
    void multiply_rows(int64_t rows, const Input* x, const typename G::Weight* panels, int64_t panel_stride, int64_t depth,
                       bool add, Sum* sums, Ahead ahead) const {
        if constexpr (ROWS > 0) {
            if (rows == ROWS)
                G::template multiply<ROWS, PANELS>(
                    x, source.stride, panels, panel_stride, depth, add, sums, BLOCK_ROWS * PANEL, ahead);
            else
                multiply_rows<G, ROWS - 1, PANELS>(rows, x, panels, panel_stride, depth, add, sums, ahead);
        }
    }

    // All rows of a block times a piece of PANELS panels, in tiles of about as many rows. What stands `bytes` behind `piece`
    // in memory is fetched meanwhile, a part by each tile; a single one, which waits for its own panels, fetches what lies a
    // little ahead.
    template <class G, int PANELS>
    void multiply_tiles(const Input* x, int64_t rows, const typename G::Weight* panels, int64_t panel_stride, int64_t depth,
                        bool add, Sum* sums, const Weight* piece) const {
        constexpr int64_t NEAR = 2048;
        const int64_t num_tiles = (rows + G::ROWS - 1) / G::ROWS, bytes = depth * PANEL * PANELS * sizeof(Weight);
        const int64_t step = 64 * PANELS * sizeof(Weight) / sizeof(typename G::Weight) / num_tiles;
        for (int64_t tile = 0, r = 0; tile < num_tiles; ++tile) {
            const int64_t even = (rows - r + num_tiles - tile - 1) / (num_tiles - tile);
            const int64_t count = std::min(round_up(even, G::GRAIN), rows - r);
            const int64_t distance = num_tiles > 1 ? bytes + tile * bytes / num_tiles : NEAR;
            multiply_rows<G, G::ROWS, PANELS>(count, x + r * source.stride, panels, panel_stride, depth, add,
                                              sums + r * PANEL, {reinterpret_cast<const char*>(piece) + distance, step});
            r += count;
        }
    }

    // All rows of a block times PANELS panels, by `G`: Gemm or its form for few rows, or what multiplies its panels
    // once they are widened.
    template <class G, int PANELS>
    void multiply_panels(const Input* x, int64_t rows, int64_t panel, Sum* sums) const {
        const int64_t depth = round_up(call.depth, Gemm::PADDING), panel_stride = depth * PANEL;
        const Weight* panels = static_cast<const Weight*>(call.panels) + panel * panel_stride;
        for (int64_t k = 0; k < depth; k += G::DEPTH) {
            const int64_t here = std::min(G::DEPTH, depth - k);
            const Weight* piece = panels + k * PANEL;
            if constexpr (std::is_same_v<typename G::Weight, Weight>) {
                multiply_tiles<G, PANELS>(x + k, rows, piece, panel_stride, here, k > 0, sums, piece);
            } else {
                alignas(64) typename G::Weight wide[PANELS * G::DEPTH * PANEL];
                for (int p = 0; p < PANELS; ++p) Gemm::widen(piece + p * panel_stride, here, wide + p * here * PANEL);
                multiply_tiles<G, PANELS>(x + k, rows, wide, here * PANEL, here, k > 0, sums, piece);
            }
        }
    }

    template <class G>
    void multiply_group(const Input* x, int64_t rows, int64_t first, int64_t last, Sum* sums) const {
        int64_t panel = first;
        for (; panel + G::PANELS <= last; panel += G::PANELS)
            multiply_panels<G, G::PANELS>(x, rows, panel, sums + (panel - first) * BLOCK_ROWS * PANEL);
        for (; panel < last; ++panel) multiply_panels<G, 1>(x, rows, panel, sums + (panel - first) * BLOCK_ROWS * PANEL);
    }

    void multiply(const Input* x, int64_t rows, int64_t first, int64_t last, Sum* sums) const {
        if constexpr (Gemm::WIDEN_FROM > 0) {
            if (rows >= Gemm::WIDEN_FROM) return multiply_group<typename Gemm::Wide>(x, rows, first, last, sums);
            if (rows <= Gemm::Few::ROWS) return multiply_group<typename Gemm::Few>(x, rows, first, last, sums);
        }
        multiply_group<Gemm>(x, rows, first, last, sums);
    }

    // Panels [first, last) for a block of rows, GROUP at a time: long enough pieces of rows for memory to be read ahead.
    void run_block(const Input* x, int64_t first_row, int64_t rows, int64_t first, int64_t last, const Matrix& out,
                   int64_t out_row) const {
        alignas(64) static thread_local Sum sums[GROUP * BLOCK_ROWS * PANEL];
        Gemm::begin();
        for (int64_t panel = first; panel < last; panel += GROUP) {
            const int64_t end = std::min(panel + GROUP, last);
            multiply(x, rows, panel, end, sums);
            for (int64_t r = 0; r < rows; ++r)
                finish_row(x + r * source.stride, sums + r * PANEL, panel, end, first_row + r, out, out_row + r);
        }
        Gemm::end();
    }

    // The columns of panels [first, last) of one row: scale, bias, activation, residual, and into `out`.
    void finish_row(const Input* x, const Sum* sums, int64_t first, int64_t last, int64_t row, const Matrix& out,
                    int64_t out_row) const {
        alignas(64) float values[GROUP * PANEL];
        const int64_t column = first * PANEL, count = std::min(last * PANEL, call.num_columns) - column;
        const auto scaler = source.scaler(x);
        const float* bias = call.bias ? call.bias + column : nullptr;
        with_activation(call.activation, call.out.kind != FP32, [&](auto activation) {
            for (int64_t panel = 0; panel < last - first; ++panel)
                for (int64_t lane = 0; lane < PANEL; lane += LANES) {
                    const int64_t c = panel * PANEL + lane;
                    const Vec value = scaler(sums + panel * BLOCK_ROWS * PANEL + lane, column + c);
                    store(values + c, activation(bias ? value + load(bias + c) : value));
                }
        });
        if (call.residual.data) add_row(values, call.residual, row, column, count);
        write_row(values, out, out_row, column, count);
    }

    void quantise_out(const float* rows, int64_t stride, int64_t first_row, int64_t num_rows) const {
        for (int64_t r = 0; r < num_rows; ++r)
            quantise_row(rows + r * stride, call.num_columns, call.out_inverse_smooth, call.out_scale,
                         const_cast<uint8_t*>(call.out.quantised(first_row + r)));
    }

    int64_t num_panels() const { return round_up(call.num_columns, PANEL) / PANEL; }

    void run_by_rows(int64_t num_blocks, bool has_many) const {
        const bool is_quantised = call.out.kind == QUANTISED;
        parallel_for(num_blocks, has_many, [&](int64_t block) {
            static thread_local std::vector<Input> prepared_memory;
            static thread_local std::vector<float> out_memory;
            const int64_t first = block * BLOCK_ROWS, rows = std::min(BLOCK_ROWS, call.num_rows - first);
            const Input* x = source.is_ready ? source.ready(first) : nullptr;
            if (!x) {
                Input* prepared = scratch(prepared_memory, BLOCK_ROWS * source.stride);
                source.prepare(first, rows, prepared);
                x = prepared;
            }
            if (is_quantised) {
                float* floats = scratch(out_memory, BLOCK_ROWS * call.num_columns);
                run_block(x, first, rows, 0, num_panels(), {floats, call.num_columns, FP32}, 0);
                quantise_out(floats, call.num_columns, first, rows);
            } else {
                run_block(x, first, rows, 0, num_panels(), call.out, first);
            }
        });
    }

    void run_by_columns(int64_t num_blocks, int64_t num_threads) const {
        static thread_local std::vector<Input> prepared_memory;
        static thread_local std::vector<float> out_memory;
        const bool is_quantised = call.out.kind == QUANTISED;
        Input* prepared = source.is_ready ? nullptr : scratch(prepared_memory, call.num_rows * source.stride);
        float* floats = is_quantised ? scratch(out_memory, call.num_rows * call.num_columns) : nullptr;
        // Even numbers of panels, about four tasks for each thread.
        const int64_t wanted = (num_panels() * num_blocks + 4 * num_threads - 1) / (4 * num_threads);
        const int64_t panels_each = round_up(std::max<int64_t>(wanted, 1), Gemm::PANELS);
        const int64_t groups = (num_panels() + panels_each - 1) / panels_each;
        if (prepared)
            parallel_rows(call.num_rows, true, [&](int64_t first, int64_t last) {
                source.prepare(first, last - first, prepared + first * source.stride);
            });
        parallel_for(num_blocks * groups, true, [&](int64_t task) {
            const int64_t first = task / groups * BLOCK_ROWS, panel = task % groups * panels_each;
            const Input* x = prepared ? prepared + first * source.stride : source.ready(first);
            const Matrix out = is_quantised ? Matrix{floats, call.num_columns, FP32} : call.out;
            run_block(x, first, std::min(BLOCK_ROWS, call.num_rows - first), panel,
                      std::min(panel + panels_each, num_panels()), out, first);
        });
        if (is_quantised)
            parallel_rows(call.num_rows, true, [&](int64_t first, int64_t last) {
                quantise_out(floats + first * call.num_columns, call.num_columns, first, last - first);
            });
    }

    void run() const {
        if (call.num_rows == 0) return;  // a step of prompt chunks has no logits to compute
        const int64_t num_blocks = (call.num_rows + BLOCK_ROWS - 1) / BLOCK_ROWS, num_threads = count_threads();
        const bool has_many = call.num_rows * call.num_columns * call.depth > MANY_PRODUCTS;
        if (num_threads == 1 || num_blocks >= 4 * num_threads || !has_many)
            run_by_rows(num_blocks, has_many);
        else
            run_by_columns(num_blocks, num_threads);
    }
};

}  // namespace padless
