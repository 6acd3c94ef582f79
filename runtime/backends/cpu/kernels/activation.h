// The activations of `linear_act`, and gates made of them.
#pragma once

#include <iterator>

#include "kernel.h"
#include "simd.h"

namespace padless {

// x * Phi(x). (Phi(x) - 1/2) / x is a polynomial in x^2, its highest power first, fitted over |x| <= LIMIT: no division.
template <class Fit>
inline Vec gelu(Vec x) {
    constexpr float LIMIT = Fit::LIMIT;
    const Vec bounded = minimum(maximum(x, broadcast(-LIMIT)), broadcast(LIMIT));
    const Vec t = bounded * bounded * (2 / (LIMIT * LIMIT)) - 1.0f;
    Vec p = broadcast(Fit::COEFFICIENTS[0]);
    for (size_t i = 1; i < std::size(Fit::COEFFICIENTS); ++i) p = p * t + Fit::COEFFICIENTS[i];
    const Vec below = select(x <= -LIMIT, Vec{}, x);
    return below * (bounded * p + 0.5f);
}

// To 8e-8 of Phi.
struct Fp32Gelu {
    static constexpr float LIMIT = 5.6f;
    static constexpr float COEFFICIENTS[] = {
        1.502532707e-04f,  -3.861171603e-04f, 2.876071203e-04f, -4.349142229e-04f, 1.628435525e-03f, -3.133104653e-03f,
        4.701490938e-03f,  -7.353505134e-03f, 1.124567817e-02f, -1.582402653e-02f, 2.088435075e-02f, -2.629875549e-02f,
        3.197593177e-02f,  -3.834658952e-02f, 4.698064641e-02f, -6.305126295e-02f, 1.262595961e-01f};
};

// For what is rounded to bf16 or to a byte of a row: to 1.2e-3 of the result above -3.5, and below there to 1.3e-4.
// bf16 rounds to 2e-3.
struct NarrowGelu {
    static constexpr float LIMIT = 4.0f;
    static constexpr float COEFFICIENTS[] = {
        7.526774034e-04f, -3.133457017e-03f, 6.845968265e-03f,
        -1.257542139e-02f, 2.234170357e-02f, -3.680635101e-02f,
        5.594254962e-02f, -8.432537136e-02f, 1.759498562e-01f};
};

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Calls `body` with the activation as a function of vectors: the choice is made once, not for each vector. `is_narrow`: its
// results will be rounded to bf16 or to bytes.
template <class Body>
inline void with_activation(Activation activation, bool is_narrow, const Body& body) {
    switch (activation) {
        case GELU: return is_narrow ? body([](Vec x) { return gelu<NarrowGelu>(x); })
                                    : body([](Vec x) { return gelu<Fp32Gelu>(x); });
        case GELU_TANH: return body([](Vec x) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); });
        case RELU: return body([](Vec x) { return maximum(Vec{}, x); });
        case SILU: return body([](Vec x) { return x * sigmoid(x); });
        case TANH: return body([](Vec x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); });
        default: return body([](Vec x) { return x; });
    }
}

// act(gate) * other of `row`: 2 * width numbers, one behind the other, of which the first half becomes the result.
inline void gate_row(float* row, int64_t width, Activation activation, bool is_narrow) {
    with_activation(activation, is_narrow, [=](auto act) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(row + i, act(load(row + i)) * load(row + width + i));
        if (i < width)
            store_some(row + i, act(load_some(row + i, width - i)) * load_some(row + width + i, width - i), width - i);
    });
}

}  // namespace padless
