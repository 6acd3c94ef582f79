// The products of bf16 that some CPUs with AVX512 have, for a CPU without.
#pragma once

#include "avx512.h"

#include <cstring>

#define __AVX512BF16__ 1

namespace emulated {

inline float widen_bf16(const void* from) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Each lane: two bf16 times two others, the second pair first.
inline Floats dot2(Floats total, Ints pair, Ints weight) {
    const auto *x = reinterpret_cast<const char*>(&pair), *w = reinterpret_cast<const char*>(&weight);
    for (int lane = 0; lane < 16; ++lane)
        for (int i = 1; i >= 0; --i)
            total[lane] += widen_bf16(x + 4 * lane + 2 * i) * widen_bf16(w + 4 * lane + 2 * i);
    return total;
}

}  // namespace emulated

#define PADLESS_DPBF16(total, pair, weight) total = emulated::dot2(total, pair, weight)
