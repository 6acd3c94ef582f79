// Vectors of fp32 as wide as the CPU's registers, by the flags this is compiled with, and the functions kernels need on
// them. GCC's vector extensions carry the arithmetic; a * b + c becomes one FMA where there is one.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace padless {

// Without AVX2: 128 bits, which every CPU has in one form or another.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t BitVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));
typedef int8_t SignedByteVec __attribute__((vector_size(LANES)));

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

inline Vec broadcast(float x) { return x - Vec{}; }

template <class V, class T>
inline V load_raw(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V, class T>
inline void store_raw(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

inline Vec load(const float* p) { return load_raw<Vec>(p); }
inline void store(float* p, Vec v) { store_raw(p, v); }

// GCC 12 widens by __builtin_convertvector in two halves.
inline Vec load(const BFloat16* p) {
#if defined(__AVX512F__)
    return (Vec)((BitVec)_mm512_cvtepu16_epi32((__m256i)load_raw<HalfVec>(p)) << 16);
#elif defined(__AVX2__)
    return (Vec)((BitVec)_mm256_cvtepu16_epi32((__m128i)load_raw<HalfVec>(p)) << 16);
#else
    return (Vec)(__builtin_convertvector(load_raw<HalfVec>(p), BitVec) << 16);
#endif
}

#if !defined(__AVX2__)
// The bits of a half float in the low half of each lane. Shifted into a float's place, its exponent is too small by 112.
inline Vec widen_half_floats(BitVec half) {
    const BitVec magnitude = half & 0x7fff, scaled = (BitVec)((Vec)(magnitude << 13) * 0x1p112f);
    const BitVec is_infinite_or_nan = (BitVec)(magnitude >= 0x7c00);
    return (Vec)(scaled | (is_infinite_or_nan & 0x7f800000) | (half & 0x8000) << 16);
}

// Rounds to nearest, ties to even: adding a number 2^13 times as large as the last bit that is to stay rounds at that bit.
// By Marat Dukhan's FP16 library.
inline BitVec narrow_to_half_floats(Vec v) {
    const BitVec bits = (BitVec)v, doubled = bits + bits, exponent = doubled & 0xff000000;
    const BitVec least = exponent < 0x71000000 ? BitVec{} + 0x71000000 : exponent;
    const Vec magnitude = (Vec)(bits & 0x7fffffff) * 0x1p112f * 0x1p-110f;  // what is too large becomes infinite
    const BitVec rounded = (BitVec)((Vec)((least >> 1) + 0x07800000) + magnitude);
    const BitVec half = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
    return (bits & 0x80000000) >> 16 | (doubled > 0xff000000 ? BitVec{} + 0x7e00 : half);
}
#endif

inline Vec load(const Float16* p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps((__m256i)load_raw<HalfVec>(p));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtph_ps((__m128i)load_raw<HalfVec>(p));
#else
    return widen_half_floats(__builtin_convertvector(load_raw<HalfVec>(p), BitVec));
#endif
}

inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)load_raw<ByteVec>(p)));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(load_raw<SignedByteVec>(p), Vec);
#endif
}

// The upper half of each lane.
inline HalfVec upper_halves(BitVec bits) {
#if defined(__AVX512F__)
    return (HalfVec)_mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)bits, 16));
#elif defined(__AVX2__)
    const __m256i words = _mm256_srli_epi32((__m256i)bits, 16);
    return (HalfVec)_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
    return __builtin_convertvector(bits >> 16, HalfVec);
#endif
}

// To bf16, in the upper half of each lane; below it anything. Rounds to nearest, ties to even. A NaN becomes the one of all
// ones: rounded, some would wrap around to 0.
inline BitVec round_upper_halves(Vec v) {
    const BitVec bits = (BitVec)v;
    return (bits + 0x7fff + ((bits >> 16) & 1)) | (BitVec)(v != v);
}

inline void store(BFloat16* p, Vec v) { store_raw(p, upper_halves(round_upper_halves(v))); }

inline void store(Float16* p, Vec v) {
#if defined(__AVX512F__)
    store_raw(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    store_raw(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    store_raw(p, __builtin_convertvector(narrow_to_half_floats(v), HalfVec));
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(BFloat16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = x != x ? 0xffff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The first `count` lanes from memory, the others 0.
template <class T>
inline Vec load_some(const T* p, int64_t count) {
    T buffer[LANES] = {};
    std::memcpy(buffer, p, count * sizeof(T));
    return load(buffer);
}

template <class T>
inline void store_some(T* p, Vec v, int64_t count) {
    T buffer[LANES];
    store(buffer, v);
    std::memcpy(p, buffer, count * sizeof(T));
}

inline Vec select(IntVec condition, Vec yes, Vec no) { return condition ? yes : no; }

// b where either is NaN.
inline Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// b where either is NaN.
inline Vec minimum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// Adding this rounds a float under 2^22 in size to its nearest integer, which then stands in the low bits.
constexpr float ROUNDER = 12582912.0f;
constexpr int32_t ROUNDER_BITS = 0x4b400000;

inline IntVec round_to_int(Vec x) { return (IntVec)(x + ROUNDER) - ROUNDER_BITS; }

// Rounded to nearest and cut to -127 ... 127.
inline void store(int8_t* p, Vec v) {
    const IntVec whole = round_to_int(minimum(maximum(v, broadcast(-127.0f)), broadcast(127.0f)));
#if defined(__AVX512F__)
    store_raw(p, _mm512_cvtepi32_epi8((__m512i)whole));
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)whole), high = _mm256_extracti128_si256((__m256i)whole, 1);
    const __m128i words = _mm_packs_epi32(low, high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
#else
    store_raw(p, __builtin_convertvector(whole, SignedByteVec));
#endif
}

// Halves of the vector are added to one another until one lane is left: the same order everywhere.
inline float sum(Vec v) {
    float lane[LANES];
    store(lane, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

inline float largest(Vec v) {
    float lane[LANES];
    store(lane, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

inline float smallest(Vec v) { return -largest(-v); }

// One step of a transposition: lanes of `a` and `b` whose numbers differ in the bit WIDTH change places.
template <int WIDTH>
inline void swap_lanes(Vec& a, Vec& b) {
    IntVec low, high;
    for (int i = 0; i < LANES; ++i) {
        low[i] = i & WIDTH ? LANES + i - WIDTH : i;
        high[i] = i & WIDTH ? LANES + i : i + WIDTH;
    }
    const Vec first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
    a = first;
    b = second;
}

template <int WIDTH = LANES / 2>
inline void transpose(Vec (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if (!(i & WIDTH)) swap_lanes<WIDTH>(rows[i], rows[i + WIDTH]);
    if constexpr (WIDTH > 1) transpose<WIDTH / 2>(rows);
}

inline Vec reversed(Vec v) {
    IntVec order;
    for (int i = 0; i < LANES; ++i) order[i] = LANES - 1 - i;
    return __builtin_shuffle(v, order);
}

// 0, 1, 2 ...
inline IntVec lane_numbers() {
    IntVec numbers;
    for (int i = 0; i < LANES; ++i) numbers[i] = i;
    return numbers;
}

// e^x by 2^n e^r, |r| <= ln 2 / 2, to 1.5e-7. Exactly 0 below e^-87.7, where 2^n has no bits left: what is masked by -inf
// weighs nothing. Ends at e^88. NaN stays NaN.
inline Vec exponential(Vec x) {
    x = minimum(broadcast(88.0f), maximum(broadcast(-88.0f), x));
    const Vec n = x * 1.44269504f + ROUNDER;
    const Vec r = x - (n - ROUNDER) * 0.693147181f;
    Vec p = broadcast(8.291708380e-03f);
    p = p * r + 4.191507784e-02f;
    p = p * r + 1.666766324e-01f;
    p = p * r + 4.999889864e-01f;
    p = p * r + 9.999996660e-01f;
    p = p * r + 1.000000071f;
    return p * (Vec)(((IntVec)n << 23) + (127 << 23));
}

}  // namespace padless
