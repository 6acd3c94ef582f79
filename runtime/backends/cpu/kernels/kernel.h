// How a kernel is defined: under its op's name, with the op's arguments in a struct (`structs.py` makes structs.h of them).
#pragma once

#include "parallel.h"
#include "structs.h"

// Kernels return how many of their inputs are wrong; then they have computed nothing, or not all.
#define PADLESS_KERNEL(name, Arguments) extern "C" int64_t padless_##name(const padless::Arguments& call)

namespace padless {

// What one core does in the time that it takes to wake the others, a few microseconds: so many numbers looked at once or
// twice, and so many multiplications. Less is left to one; what is computed is the same.
constexpr int64_t MANY_VALUES = 1 << 14, MANY_PRODUCTS = 1 << 17;

inline bool is_out(int64_t index, int64_t size) { return uint64_t(index) >= uint64_t(size); }

inline int64_t width(const Tensor& x) { return x.sizes[x.num_dims - 1]; }

inline int64_t num_rows(const Tensor& x) {
    int64_t product = 1;
    for (int64_t i = 0; i + 1 < x.num_dims; ++i) product *= x.sizes[i];
    return product;
}

template <class T>
T* data(const Tensor& x) {
    return static_cast<T*>(x.data);
}

}  // namespace padless
