// What the kernels use of AVX512, for a CPU with AVX2: included before everything else, so that the same sources
// can be tested for their results where they cannot run. Says nothing about speed.
#pragma once

#include <cstdint>

#include <immintrin.h>

#define __AVX512F__ 1

namespace emulated {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

inline __m512i widen_halves(__m256i v) { return (__m512i)__builtin_convertvector((Halves)v, Words); }
inline __m512i widen_bytes(__m128i v) { return (__m512i)__builtin_convertvector((Bytes)v, Ints); }
inline __m256i narrow_to_halves(__m512i v) { return (__m256i)__builtin_convertvector((Words)v, Halves); }
inline __m128i narrow_to_bytes(__m512i v) { return (__m128i)__builtin_convertvector((Ints)v, Bytes); }
inline __m512 to_floats(__m512i v) { return (__m512)__builtin_convertvector((Ints)v, Floats); }
inline __m512i shift_right(__m512i v, int count) { return (__m512i)((Words)v >> count); }

// The second operand where either is NaN, as the instructions do.
inline __m512 larger(__m512 a, __m512 b) { return (__m512)((Floats)a > (Floats)b ? (Floats)a : (Floats)b); }
inline __m512 smaller(__m512 a, __m512 b) { return (__m512)((Floats)a < (Floats)b ? (Floats)a : (Floats)b); }

union Two {
    __m512 whole;
    __m256 halves[2];
};

inline __m512 from_half_floats(__m256i v) {
    Two two;
    two.halves[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
    two.halves[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
    return two.whole;
}

inline __m256i to_half_floats(__m512 v) {
    Two two;
    two.whole = v;
    return _mm256_set_m128i(_mm256_cvtps_ph(two.halves[1], _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(two.halves[0], _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace emulated

#define _mm512_cvtepu16_epi32 emulated::widen_halves
#define _mm512_cvtepi8_epi32 emulated::widen_bytes
#define _mm512_cvtepi32_epi16 emulated::narrow_to_halves
#define _mm512_cvtepi32_epi8 emulated::narrow_to_bytes
#define _mm512_cvtepi32_ps emulated::to_floats
#define _mm512_srli_epi32 emulated::shift_right
#define _mm512_max_ps emulated::larger
#define _mm512_min_ps emulated::smaller
#define _mm512_cvtph_ps emulated::from_half_floats
#define _mm512_cvtps_ph(v, rounding) emulated::to_half_floats(v)
