// The activations of `linear_act`.
#pragma once

#include "kernel.h"
#include "simd.h"

namespace padless {

// x * Phi(x). (Phi(x) - 1/2) / x is a polynomial of degree 16 in x^2, fitted over |x| <= 5.6 to 8e-8 of Phi: no division.
inline Vec gelu(Vec x) {
    constexpr float LIMIT = 5.6f;
    constexpr float COEFFICIENTS[] = {
        -3.861171603e-04f, 2.876071203e-04f, -4.349142229e-04f, 1.628435525e-03f,
        -3.133104653e-03f, 4.701490938e-03f, -7.353505134e-03f, 1.124567817e-02f,
        -1.582402653e-02f, 2.088435075e-02f, -2.629875549e-02f, 3.197593177e-02f,
        -3.834658952e-02f, 4.698064641e-02f, -6.305126295e-02f, 1.262595961e-01f};
    const Vec bounded = minimum(maximum(x, broadcast(-LIMIT)), broadcast(LIMIT));
    const Vec t = bounded * bounded * (2 / (LIMIT * LIMIT)) - 1.0f;
    Vec p = broadcast(1.502532707e-04f);
    for (const float coefficient : COEFFICIENTS) p = p * t + coefficient;
    const Vec below = select(x <= -LIMIT, Vec{}, x);
    return below * (bounded * p + 0.5f);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Calls `body` with the activation as a function of vectors: the choice is made once, not for each vector.
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
    switch (activation) {
        case GELU: return body([](Vec x) { return gelu(x); });
        case GELU_TANH: return body([](Vec x) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); });
        case RELU: return body([](Vec x) { return maximum(Vec{}, x); });
        case SILU: return body([](Vec x) { return x * sigmoid(x); });
        case TANH: return body([](Vec x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); });
        default: return body([](Vec x) { return x; });
    }
}

}  // namespace padless
