// Rows of activations as kernels take and give them: fp32, bf16, or quantised to uint8.
//
// A quantised row is `padded_width` bytes, zero-padded to a multiple of 64 values, and a tail of 64 bytes that begins
// with its scale (fp32) and its zero point (int32): value = (byte - zero) * scale. Each row carries its own.
#pragma once

#include <vector>

#include "kernel.h"
#include "simd.h"

namespace padless {

constexpr int64_t ROW_TAIL = 64;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t padded_width(int64_t width) { return round_up(width, 64); }
inline int64_t quantised_bytes(int64_t width) { return padded_width(width) + ROW_TAIL; }

struct RowScale {
    float scale;
    int32_t zero;
};

inline RowScale row_scale(const uint8_t* row, int64_t width) { return load_raw<RowScale>(row + padded_width(width)); }

// A row-major matrix in one of the kinds; `stride` in elements (bytes for QUANTISED).
struct Matrix {
    const void* data;
    int64_t stride;
    Kind kind;

    const float* fp32(int64_t row) const { return static_cast<const float*>(data) + row * stride; }
    const BFloat16* bf16(int64_t row) const { return static_cast<const BFloat16*>(data) + row * stride; }
    const uint8_t* quantised(int64_t row) const { return static_cast<const uint8_t*>(data) + row * stride; }
};

// A tensor of any dimensions by its last one; the others lie evenly.
inline Matrix rows_of(const Tensor& x) { return {x.data, x.num_dims > 1 ? x.strides[x.num_dims - 2] : 0, x.kind}; }

// [num_tokens, num_heads, head_dim] by its first dimension; a token's heads lie behind one another.
inline Matrix tokens_of(const Tensor& x) { return {x.data, x.strides[0], x.kind}; }

template <class T>
inline RowScale find_row_scale(const T* x, int64_t width, const float* inverse_smooth) {
    Vec low{}, high{}, spoilt{};  // `spoilt` becomes NaN with the first value that is none or infinite, and so the scale
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vec v = load(x + i);
        if (inverse_smooth) v *= load(inverse_smooth + i);
        low = minimum(low, v);
        high = maximum(high, v);
        spoilt += v * 0.0f;
    }
    if (i < width) {
        Vec v = load_some(x + i, width - i);
        if (inverse_smooth) v *= load_some(inverse_smooth + i, width - i);
        low = minimum(low, v);
        high = maximum(high, v);
        spoilt += v * 0.0f;
    }
    const float bottom = smallest(low), top = largest(high);
    const float scale = top > bottom ? (top - bottom) / 255.0f : 1.0f;
    return {scale + sum(spoilt), int32_t(__builtin_rintf(-bottom / scale))};
}

// Rounded to nearest and cut to 0 ... 255.
inline ByteVec to_bytes(Vec v) {
    const IntVec whole = round_to_int(minimum(maximum(v, Vec{}), broadcast(255.0f)));
#if defined(__AVX512F__)
    return (ByteVec)_mm512_cvtepi32_epi8((__m512i)whole);
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)whole), high = _mm256_extracti128_si256((__m256i)whole, 1);
    const __m128i words = _mm_packus_epi32(low, high);
    const __m128i bytes = _mm_packus_epi16(words, words);
    return load_raw<ByteVec>(&bytes);
#else
    return __builtin_convertvector(whole, ByteVec);
#endif
}

// Quantise one row, by the range of its own values, or by `fixed` where calibration found one for all rows.
template <class T>
inline void quantise_row(const T* x, int64_t width, const float* inverse_smooth, const RowScale* fixed, uint8_t* row) {
    const RowScale found = fixed ? *fixed : find_row_scale(x, width, inverse_smooth);
    const float inverse = 1.0f / found.scale, zero = float(found.zero);
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vec v = load(x + i);
        if (inverse_smooth) v *= load(inverse_smooth + i);
        store_raw(row + i, to_bytes(v * inverse + zero));
    }
    if (i < width) {
        Vec v = load_some(x + i, width - i);
        if (inverse_smooth) v *= load_some(inverse_smooth + i, width - i);
        const ByteVec bytes = to_bytes(v * inverse + zero);
        std::memcpy(row + i, &bytes, width - i);
    }
    std::memset(row + width, 0, padded_width(width) - width);
    store_raw(row + padded_width(width), found);
}

inline void quantise_row(
    const Matrix& x, int64_t index, int64_t width, const float* inverse_smooth, const RowScale* fixed, uint8_t* row) {
    if (x.kind == BF16)
        quantise_row(x.bf16(index), width, inverse_smooth, fixed, row);
    else
        quantise_row(x.fp32(index), width, inverse_smooth, fixed, row);
}

template <class T>
inline void add_row(float* row, const T* other, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(row + i, load(row + i) + load(other + i));
    for (; i < width; ++i) row[i] += to_float(other[i]);
}

// row += columns from `first` of a row of a matrix that is not quantised.
inline void add_row(float* row, const Matrix& other, int64_t index, int64_t first, int64_t width) {
    if (other.kind == BF16)
        add_row(row, other.bf16(index) + first, width);
    else
        add_row(row, other.fp32(index) + first, width);
}

template <class T>
inline void copy_row(const T* from, int64_t width, float* row) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(row + i, load(from + i));
    for (; i < width; ++i) row[i] = to_float(from[i]);
}

inline void copy_row(const Matrix& from, int64_t index, int64_t first, int64_t width, float* row) {
    if (from.kind == BF16)
        copy_row(from.bf16(index) + first, width, row);
    else
        copy_row(from.fp32(index) + first, width, row);
}

template <class T>
inline void write_row(const float* row, T* out, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(out + i, load(row + i));
    for (; i < width; ++i) store_one(out + i, row[i]);
}

inline void write_row(const float* row, const Matrix& out, int64_t index, int64_t first, int64_t width) {
    if (out.kind == BF16)
        write_row(row, const_cast<BFloat16*>(out.bf16(index)) + first, width);
    else
        write_row(row, const_cast<float*>(out.fp32(index)) + first, width);
}

// Memory of one thread that stays for the next call: at least `count`, aligned to cache lines.
template <class T>
inline T* scratch(std::vector<T>& memory, int64_t count) {
    if (int64_t(memory.size()) < count + 64) memory.resize(count + 64);
    return reinterpret_cast<T*>(round_up(reinterpret_cast<int64_t>(memory.data()), 64));
}

}  // namespace padless
