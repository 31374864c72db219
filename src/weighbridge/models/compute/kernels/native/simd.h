// One vector register of floats for the instruction set this source is compiled for, on GCC/Clang vector types.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define WB_INLINE static inline __attribute__((always_inline))
#define WB_UNROLL _Pragma("GCC unroll 16")

// Stops the compiler from loading a value again at each use.
#if defined(__AVX512F__)
#define WB_KEEP_IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#define WB_KEEP_IN_REGISTER(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define WB_KEEP_IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define WB_KEEP_IN_REGISTER(x) (void)0
#endif

namespace weighbridge::WB_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * lanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * lanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * lanes)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * lanes)));

struct bfloat16 {
  uint16_t bits;
};

WB_INLINE float widen(bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

WB_INLINE Vector splat(float x) { return Vector{} + x; }

WB_INLINE Vector load(const float *p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

WB_INLINE Bits load_bits(const void *p) {
  Bits v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

WB_INLINE Vector load(const bfloat16 *p) {
#if defined(__AVX512F__)  // GCC 12 widens half by half what is one instruction
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
  return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
  HalfBits v;
  std::memcpy(&v, p, sizeof v);
  return (Vector)(__builtin_convertvector(v, Bits) << 16);
#endif
}

WB_INLINE Vector load(const int8_t *p) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  Vector v;
  for (int i = 0; i < lanes; i++) v[i] = p[i];
  return v;
#endif
}

WB_INLINE void store(float *p, Vector v) { std::memcpy(p, &v, sizeof v); }

// Round to nearest even; a NaN stays a NaN.
WB_INLINE HalfBits round_to_bfloat16(Vector v) {
#if defined(__AVX512BF16__)
  return (HalfBits)_mm512_cvtneps_pbh((__m512)v);
#else
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector((Bits)(v == v ? (IntVector)rounded : (IntVector)quiet), HalfBits);
#endif
}

WB_INLINE void store(bfloat16 *p, Vector v) {
  const HalfBits half = round_to_bfloat16(v);
  std::memcpy(p, &half, sizeof half);
}

// The last n < lanes elements of a row; the missing ones read as zero.
template <class T>
WB_INLINE Vector load_part(const T *p, int n) {
  T part[lanes] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load(part);
}

template <class T>
WB_INLINE void store_part(T *p, Vector v, int n) {
  T part[lanes];
  store(part, v);
  std::memcpy(p, part, n * sizeof(T));
}

// Like MAXPS: the second operand if either is NaN.
WB_INLINE Vector maximum(Vector a, Vector b) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

WB_INLINE float horizontal_sum(Vector v) {
  float sum = 0;
  WB_UNROLL for (int i = 0; i < lanes; i++) sum += v[i];
  return sum;
}

WB_INLINE float horizontal_max(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float largest = v[0];
  WB_UNROLL for (int i = 1; i < lanes; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

// 2^x within 1e-7 relative, or 3e-6 if `coarse` (enough under bfloat16). 0 below -126, saturates above 127, NaN stays
// NaN. Polynomials: least squares on [-0.5, 0.5], reweighted towards the smallest largest relative error.
template <bool coarse>
WB_INLINE Vector exp2_vector(Vector x) {
  const Vector low = splat(-126.0f), high = splat(127.0f);
  const Vector clamped = maximum(low, high < x ? high : x);
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vector shifted = clamped + magic;
  const Vector f = clamped - (shifted - magic);
  Vector y;
  if (coarse) {
    y = splat(9.58285314e-3f);
    y = y * f + 5.59064267e-2f;
    y = y * f + 2.40240986e-1f;
    y = y * f + 6.93124193e-1f;
  } else {
    y = splat(1.32647271e-3f);
    y = y * f + 9.67151286e-3f;
    y = y * f + 5.55073375e-2f;
    y = y * f + 2.40222421e-1f;
    y = y * f + 6.93146978e-1f;
  }
  y = y * f + 1.0f;
  const Bits scaled = (Bits)y + (((Bits)shifted) << 23);  // add the integer to the exponent
  return x < low ? Vector{} : (Vector)scaled;
}

}  // namespace weighbridge::WB_ISA
