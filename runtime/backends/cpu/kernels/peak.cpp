// What `bench.ops` measures ops against: the clock, and the innermost loops of linear layers on data in the first-level cache.
#include "gemm_bf16.h"
#include "gemm_int8.h"
#include "kernel.h"

using namespace padless;

namespace {

template <class Gemm>
void multiply_in_cache(int64_t repeats) {
    constexpr int64_t DEPTH = 128;
    alignas(64) static thread_local typename Gemm::Input x[Gemm::ROWS * DEPTH];
    alignas(64) static thread_local typename Gemm::Weight panels[Gemm::PANELS * PANEL * DEPTH];
    alignas(64) static thread_local typename Gemm::Sum sums[Gemm::PANELS * Gemm::ROWS * PANEL];
    const typename Gemm::Input* rows = x;
    const typename Gemm::Weight* weight = panels;
    asm("" : "+r"(rows), "+r"(weight));  // else thread-local addresses are found anew in the innermost loop
    const Ahead ahead{reinterpret_cast<const char*>(weight), 64};
    Gemm::begin();
    for (int64_t i = 0; i < repeats; ++i)
        Gemm::template multiply<Gemm::ROWS, Gemm::PANELS>(
            rows, DEPTH, weight, PANEL * DEPTH, DEPTH, i > 0, sums, Gemm::ROWS * PANEL, ahead);
    Gemm::end();
}

template <class Gemm>
constexpr int64_t products = Gemm::ROWS * Gemm::PANELS * PANEL * 128;

// What multiplies many rows: panels of bf16 are widened for all of them where the CPU has no products of bf16.
template <class Gemm, bool WIDENS = (Gemm::WIDEN_FROM > 0)>
struct ManyRows : Gemm {};
template <class Gemm>
struct ManyRows<Gemm, true> : Gemm::Wide {};

}  // namespace

// Takes a cycle of the clock for each of `count`, a multiple of 16: additions that wait for one another.
extern "C" int64_t padless_wait_cycles(int64_t count) {
    int64_t sum = 0, one = 1;
    asm("" : "+r"(one));  // some CPUs add constants in no time
    for (int64_t i = 0; i < count; i += 16)
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) {
            sum += one;
            asm("" : "+r"(sum));
        }
    return sum;
}

// Each returns the number of multiply-adds done, on one thread.
extern "C" int64_t padless_peak_fp32(int64_t repeats) {
    multiply_in_cache<Fp32Gemm>(repeats);
    return repeats * products<Fp32Gemm>;
}

extern "C" int64_t padless_peak_int8(int64_t repeats) {
    multiply_in_cache<Int8Gemm>(repeats);
    return repeats * products<Int8Gemm>;
}

extern "C" int64_t padless_peak_bf16(int64_t repeats) {
    multiply_in_cache<ManyRows<Bf16Gemm>>(repeats);
    return repeats * products<ManyRows<Bf16Gemm>>;
}
