// The products of bytes of VNNI, in vectors of any width, for a CPU without.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulated {

// Each lane: four unsigned bytes times four signed ones.
template <class Ints>
inline Ints dot4(Ints total, Ints four, Ints weight) {
    uint8_t x[sizeof(Ints)];
    int8_t w[sizeof(Ints)];
    std::memcpy(x, &four, sizeof x);
    std::memcpy(w, &weight, sizeof w);
    for (size_t i = 0; i < sizeof(Ints); ++i) total[i / 4] += int32_t(x[i]) * w[i];
    return total;
}

}  // namespace emulated

#define PADLESS_DPBUSD(total, four, weight) total = emulated::dot4(total, four, weight)
