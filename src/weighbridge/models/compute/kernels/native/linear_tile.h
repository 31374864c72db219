// sums[m][n] = product of token m with row n of one tile of weights, before multiplier and bias.
//
// Each group of 32 columns is summed in integers, exactly; a group then costs one conversion and one or two fused
// multiply-adds for 16 outputs of one token. A tile of M tokens shares every code that is loaded.
#pragma once

#include "linear_activations.h"

// The accumulators of a tile stay in registers only if every loop over its tokens is unrolled.
#define WB_UNROLL_TOKENS _Pragma("GCC unroll 32")

namespace weighbridge::WB_ISA {

template <class T>
WB_INLINE T read(const uint8_t *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

#if defined(__AVX512F__)

// How far ahead weights are asked for: the hardware stops at each page, and at 8 tokens and more arithmetic hides
// the memory only if the next codes are always on their way.
constexpr int prefetch_bytes = 2048;

WB_INLINE __m512i load_codes(const uint8_t *p) {
  _mm_prefetch((const char *)p + prefetch_bytes, _MM_HINT_T0);
  return _mm512_loadu_si512(p);
}

// Four activations of one token, for all 16 rows.
WB_INLINE __m512i broadcast(const uint8_t *p) { return _mm512_set1_epi32(read<int32_t>(p)); }

template <int M>
WB_INLINE void add_products(__m512i (&acc)[M], __m512i codes, const uint8_t *activations) {
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
    acc[m] = _mm512_dpbusd_epi32(acc[m], codes, broadcast(activations + m * 4));
}

WB_INLINE __m512 load_halves(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

template <int M, int bits>
void multiply_codes(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                    float (*sums)[rows_per_tile]) {
  const __m512i low = _mm512_set1_epi8(0x0f);
  __m512 total[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t *token_scales = tile + M * columns_per_group, *corrections = token_scales + M * 4;
    __m512i acc[M];
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
      acc[m] = bits == 4 ? _mm512_setzero_si512() : broadcast(corrections + m * 4);
    WB_UNROLL for (int i = 0; i < bits; i++) {
      const __m512i code = load_codes(codes + i * 64);
      if (bits == 4) {
        add_products<M>(acc, _mm512_and_si512(code, low), tile + i * M * 4);
        add_products<M>(acc, _mm512_and_si512(_mm512_srli_epi16(code, 4), low), tile + (i + 4) * M * 4);
      } else {
        add_products<M>(acc, code, tile + i * M * 4);
      }
    }
    const __m512 scale = load_halves(scales);
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(read<float>(token_scales + m * 4)));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), both, total[m]);
    }
    if (bits == 4) {
      const __m512 minimum = load_halves(scales + 16);
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
        total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(read<float>(corrections + m * 4)), total[m]);
    }
    codes += bits * 64;
    scales += bits == 4 ? 32 : 16;
    tile += M * bytes_per_rounded_group;
  }
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], total[m]);
}

#if defined(__AVX512BF16__)
template <int M>
void multiply_bfloat16(const uint8_t *weights, const uint8_t *tile, int64_t pairs, float (*sums)[rows_per_tile]) {
  __m512 total[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    const __m512bh weight = (__m512bh)load_codes(weights + k * 64);
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
      total[m] = _mm512_dpbf16_ps(total[m], weight, (__m512bh)broadcast(tile + (k * M + m) * 4));
  }
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], total[m]);
}
#endif

template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t steps,
                   float (*sums)[rows_per_tile]) {
  if constexpr (bits != 16) return multiply_codes<M, bits>(codes, scales, tile, steps, sums);
#if defined(__AVX512BF16__)
  if constexpr (bits == 16) return multiply_bfloat16<M>(codes, tile, steps, sums);
#endif
}

#elif defined(__AVX2__)

// VPMADDUBSW adds pairs in 16 bits, with saturation. Codes of 4 bits stay far from it: 8 registers of a group sum
// to at most 8 * 2 * 15 * 127 = 30480. An 8-bit code is multiplied as two such halves.
template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                   float (*sums)[rows_per_tile]) {
  const __m256i low = _mm256_set1_epi8(0x0f), ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
  for (int half = 0; half < 2; half++) {
    const uint8_t *code = codes + half * 32, *group = tile;
    const uint16_t *scale_at = scales + half * 8;
    __m256 total[M];
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
      const uint8_t *token_scales = group + M * columns_per_group, *corrections = token_scales + M * 4;
      __m256i small[M], large[M];
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) small[m] = large[m] = _mm256_setzero_si256();
      WB_UNROLL for (int i = 0; i < bits; i++) {
        const __m256i pair = _mm256_loadu_si256((const __m256i *)(code + i * 64));
        const __m256i first = _mm256_and_si256(pair, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        const int next = bits == 4 ? i + 4 : i;
        WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
          const __m256i a = _mm256_set1_epi32(read<int32_t>(group + (i * M + m) * 4));
          const __m256i b = _mm256_set1_epi32(read<int32_t>(group + (next * M + m) * 4));
          __m256i &other = bits == 4 ? small[m] : large[m];
          small[m] = _mm256_add_epi16(small[m], _mm256_maddubs_epi16(first, a));
          other = _mm256_add_epi16(other, _mm256_maddubs_epi16(second, b));
        }
      }
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scale_at));
      const __m256 minimum = bits == 4 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scale_at + 16))) : scale;
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
        __m256i sum = _mm256_madd_epi16(small[m], ones);
        if (bits == 8) {
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(large[m], sixteens));
          sum = _mm256_add_epi32(sum, _mm256_set1_epi32(read<int32_t>(corrections + m * 4)));
        }
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(read<float>(token_scales + m * 4)));
        total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, total[m]);
        if (bits == 4)
          total[m] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(read<float>(corrections + m * 4)), total[m]);
      }
      code += bits * 64;
      scale_at += bits == 4 ? 32 : 16;
      group += M * bytes_per_rounded_group;
    }
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm256_storeu_ps(sums[m] + half * 8, total[m]);
  }
}

#else

WB_INLINE float from_float16(uint16_t half) {
  // The exponent field is rebiased by a multiplication, which also brings subnormals right.
  const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                   float (*sums)[rows_per_tile]) {
  float total[M][rows_per_tile] = {};
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t *token_scales = tile + M * columns_per_group, *corrections = token_scales + M * 4;
    int32_t acc[M][rows_per_tile] = {};
    for (int i = 0; i < registers_per_group; i++) {
      int16_t code[4][rows_per_tile];
      for (int n = 0; n < rows_per_tile; n++)
        for (int k = 0; k < 4; k++) {
          const int at = n * 4 + k;
          code[k][n] = bits == 4 ? (codes[(i & 3) * 64 + at] >> (i & 4)) & 15 : codes[i * 64 + at] - 128;
        }
      for (int m = 0; m < M; m++) {
        const int8_t *a = (const int8_t *)tile + (i * M + m) * 4;
        for (int n = 0; n < rows_per_tile; n++)
          acc[m][n] += code[0][n] * a[0] + code[1][n] * a[1] + code[2][n] * a[2] + code[3][n] * a[3];
      }
    }
    for (int m = 0; m < M; m++) {
      const float token_scale = read<float>(token_scales + m * 4);
      const float weighted_sum = bits == 4 ? read<float>(corrections + m * 4) : 0.0f;
      for (int n = 0; n < rows_per_tile; n++) {
        total[m][n] += acc[m][n] * (from_float16(scales[n]) * token_scale);
        if (bits == 4) total[m][n] += from_float16(scales[16 + n]) * weighted_sum;
      }
    }
    codes += bits * 64;
    scales += bits == 4 ? 32 : 16;
    tile += M * bytes_per_rounded_group;
  }
  std::memcpy(sums, total, sizeof total);
}

#endif

}  // namespace weighbridge::WB_ISA
