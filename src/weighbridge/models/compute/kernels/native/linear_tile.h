// sums[m][n] = product of token m with row n of one tile of weights, before multiplier and bias.
//
// Each group of 32 columns (16 where scales are that fine) is summed in integers, exactly; it then costs one conversion
// and one or two fused multiply-adds for 16 outputs of one token. A tile of M tokens shares every code that is loaded.
#pragma once

#include "linear_activations.h"
#include "linear_codes.h"

// The accumulators of a tile stay in registers only if every loop over its tokens is unrolled.
#define WB_UNROLL_TOKENS _Pragma("GCC unroll 32")

namespace weighbridge::WB_ISA {

// The numbers behind the codes of a group of M rounded tokens: see linear_activations.h.
template <int M>
struct TokenNumbers {
  const uint8_t *scales, *weighted_sums, *offsets;
  const uint8_t *first_offsets;                       // with AVX-512
  const uint8_t *first_pairs, *second_pairs, *pairs;  // without
};

template <int M>
WB_INLINE TokenNumbers<M> numbers_of(const uint8_t *group) {
  const uint8_t *at = group + M * columns_per_group;
  return {at, at + M * 4, at + M * 8, at + M * 12, at + M * 12, at + M * 16, at + M * 20};
}

}  // namespace weighbridge::WB_ISA

#if !defined(__AVX512F__) && defined(__AVX2__)
#include "linear_tile_avx2.h"
#endif

namespace weighbridge::WB_ISA {

#if defined(__AVX512F__)

// How far ahead weights are asked for: the hardware stops at each page, and at 8 tokens and more arithmetic hides
// the memory only if the next codes are always on their way.
constexpr int prefetch_bytes = 2048;

typedef uint16_t Shifted __attribute__((vector_size(64)));

WB_INLINE __m512i load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }

template <Form F>
WB_INLINE void prefetch_group(const uint8_t *codes) {
  constexpr int lines = layout_of(F).code_bytes / 64;
  WB_UNROLL for (int line = 0; line < lines; line++)
    _mm_prefetch((const char *)codes + line * 64 + prefetch_bytes, _MM_HINT_T0);
}

// Register i of a group, each code in a byte.
template <Form F>
WB_INLINE __m512i code_register(const uint8_t *codes, int i) {
  if (F == Form::q8_0) return load_codes(codes + i * 64);
  const __m512i pair = load_codes(codes + (i & 3) * 64);
  const __m512i low = _mm512_and_si512((__m512i)((Shifted)pair >> (i & 4)), _mm512_set1_epi8(0x0f));
  if (has_table(F))
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)table_of<F>())), low);
  if (high_bits(F) == 0) return low;
  // The high bits of register i move to bit 4; what else is in the byte is masked away.
  const int at = high_bits(F) == 1 ? i : 2 * (i & 3);
  const Shifted bits = (Shifted)load_codes(codes + 256 + (high_bits(F) == 1 ? 0 : (i >> 2) * 64));
  const __m512i high = (__m512i)(at <= 4 ? bits << (4 - at) : bits >> (at - 4));
  constexpr int and_or = 0xea;  // (a & b) | c
  return _mm512_ternarylogic_epi32(high, _mm512_set1_epi8(high_bits(F) == 1 ? 0x10 : 0x30), low, and_or);
}

// Four activations of one token, for all 16 rows.
WB_INLINE __m512i broadcast(const uint8_t *p) { return _mm512_set1_epi32(read<int32_t>(p)); }
WB_INLINE __m512 broadcast_float(const uint8_t *p) { return _mm512_set1_ps(read<float>(p)); }

template <int M>
WB_INLINE void add_products(__m512i (&acc)[M], __m512i codes, const uint8_t *activations) {
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
    acc[m] = _mm512_dpbusd_epi32(acc[m], codes, broadcast(activations + m * 4));
}

WB_INLINE __m512 load_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

WB_INLINE __m512 load_bytes(const uint8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

WB_INLINE __m512 load_signed_bytes(const uint8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

// What the integer sum of a token starts from; `half` of q6_k, which has a sum for each.
template <Form F, int M>
WB_INLINE __m512i start(const TokenNumbers<M> &numbers, int m, int half) {
  if (zero_of(F) == 0 || zero_as_minimum(F)) return _mm512_setzero_si512();
  const __m512i offset = broadcast(numbers.offsets + m * 4);
  if (zero_of(F) == 128) return offset;
  const __m512i first = broadcast(numbers.first_offsets + m * 4);
  return _mm512_srai_epi32(half == 0 ? first : _mm512_sub_epi32(offset, first), 2);  // 32 is a quarter of 128
}

template <int M, Form F>
WB_INLINE void add_group(__m512 (&total)[M], const uint8_t *codes, const uint8_t *group, __m512 scale, __m512 minimum) {
  const TokenNumbers<M> numbers = numbers_of<M>(group);
  __m512i acc[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) acc[m] = start<F, M>(numbers, m, 0);
  WB_UNROLL for (int i = 0; i < 4; i++) {  // i and i + 4 come from the same load
    add_products<M>(acc, code_register<F>(codes, i), group + i * M * 4);
    add_products<M>(acc, code_register<F>(codes, i + 4), group + (i + 4) * M * 4);
  }
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
    const __m512 both = _mm512_mul_ps(scale, broadcast_float(numbers.scales + m * 4));
    total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), both, total[m]);
    if (has_minimum(F) || zero_as_minimum(F))
      total[m] = _mm512_fmadd_ps(minimum, broadcast_float(numbers.weighted_sums + m * 4), total[m]);
  }
}

// 16 columns with a scale of their own.
template <int M, Form F, int half>
WB_INLINE void add_half_group(__m512 (&total)[M], const uint8_t *codes, const uint8_t *group, __m512 scale) {
  const TokenNumbers<M> numbers = numbers_of<M>(group);
  __m512i acc[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) acc[m] = start<F, M>(numbers, m, half);
  WB_UNROLL for (int i = 4 * half; i < 4 * half + 4; i++)
    add_products<M>(acc, code_register<F>(codes, i), group + i * M * 4);
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
    const __m512 both = _mm512_mul_ps(scale, broadcast_float(numbers.scales + m * 4));
    total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), both, total[m]);
  }
}

template <int M, Form F>
void multiply_codes(const uint8_t *codes, const uint8_t *scales, const uint8_t *tile, int64_t groups,
                    float (*sums)[rows_per_tile]) {
  constexpr FormLayout layout = layout_of(F);
  __m512 total[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t first = 0; first < groups; first += layout.head_groups) {
    __m512 d = _mm512_setzero_ps(), dmin = d;
    if (has_head(F)) {
      d = load_halves(scales);
      if (has_minimum(F)) dmin = _mm512_sub_ps(dmin, load_halves(scales + 32));
      scales += layout.head_bytes;
    }
    for (int g = 0; g < layout.head_groups; g++) {
      prefetch_group<F>(codes);
      if (F == Form::q6_k) {
        add_half_group<M, F, 0>(total, codes, tile, _mm512_mul_ps(d, load_signed_bytes(scales)));
        add_half_group<M, F, 1>(total, codes, tile, _mm512_mul_ps(d, load_signed_bytes(scales + 16)));
      } else {
        __m512 scale = d, minimum = d;
        if (!has_head(F)) scale = load_halves(scales);
        if (!has_head(F) && has_minimum(F)) minimum = load_halves(scales + 32);
        if (has_head(F)) scale = _mm512_mul_ps(d, has_minimum(F) ? load_bytes(scales) : load_signed_bytes(scales));
        if (has_head(F) && has_minimum(F)) minimum = _mm512_mul_ps(dmin, load_bytes(scales + 16));
        if (zero_as_minimum(F)) minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-zero_of(F)));
        add_group<M, F>(total, codes, tile, scale, minimum);
      }
      codes += layout.code_bytes;
      scales += layout.scale_bytes;
      tile += M * bytes_per_token_group;
    }
  }
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], total[m]);
}

#if defined(__AVX512BF16__)
template <int M>
void multiply_bfloat16(const uint8_t *weights, const uint8_t *tile, int64_t pairs, float (*sums)[rows_per_tile]) {
  __m512 total[M];
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    _mm_prefetch((const char *)weights + k * 64 + prefetch_bytes, _MM_HINT_T0);
    const __m512bh weight = (__m512bh)load_codes(weights + k * 64);
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
      total[m] = _mm512_dpbf16_ps(total[m], weight, (__m512bh)broadcast(tile + (k * M + m) * 4));
  }
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], total[m]);
}
#endif

#elif !defined(__AVX2__)

// Sums 16 columns of a group, which is all of them that certainly share a scale.
template <int M, Form F>
void add_half_group(float (*total)[rows_per_tile], const uint8_t *codes, const uint8_t *group, const Line *lines,
                    int half) {
  constexpr int zero = zero_of(F);
  int32_t acc[M][rows_per_tile] = {};
  int32_t sums[M] = {};
  for (int i = 4 * half; i < 4 * half + 4; i++) {
    int16_t code[4][rows_per_tile];
    for (int n = 0; n < rows_per_tile; n++)
      for (int k = 0; k < 4; k++) code[k][n] = int16_t(code_at<F>(codes, i, n * 4 + k) - zero);
    for (int m = 0; m < M; m++) {
      const int8_t *a = (const int8_t *)group + (i * M + m) * 4;
      sums[m] += a[0] + a[1] + a[2] + a[3];
      for (int n = 0; n < rows_per_tile; n++)
        acc[m][n] += code[0][n] * a[0] + code[1][n] * a[1] + code[2][n] * a[2] + code[3][n] * a[3];
    }
  }
  const TokenNumbers<M> numbers = numbers_of<M>(group);
  for (int m = 0; m < M; m++) {
    const float scale = read<float>(numbers.scales + m * 4);
    for (int n = 0; n < rows_per_tile; n++)
      total[m][n] += acc[m][n] * (lines[n].scale * scale) + lines[n].minimum * (scale * sums[m]);
  }
}

template <int M, Form F>
void multiply_codes(const uint8_t *codes, const uint8_t *scales, const uint8_t *tile, int64_t groups,
                    float (*sums)[rows_per_tile]) {
  constexpr FormLayout layout = layout_of(F);
  float total[M][rows_per_tile] = {};
  for (int64_t first = 0; first < groups; first += layout.head_groups) {
    const uint8_t *head = scales;
    scales += layout.head_bytes;
    for (int g = 0; g < layout.head_groups; g++) {
      for (int half = 0; half < 2; half++) {
        Line lines[rows_per_tile];
        for (int n = 0; n < rows_per_tile; n++) lines[n] = line_of<F>(head, scales, n, half);
        add_half_group<M, F>(total, codes, tile, lines, half);
      }
      codes += layout.code_bytes;
      scales += layout.scale_bytes;
      tile += M * bytes_per_token_group;
    }
  }
  std::memcpy(sums, total, sizeof total);
}

#endif

template <int M, Form F>
void multiply_tile(const uint8_t *codes, const uint8_t *scales, const uint8_t *tile, int64_t steps,
                   float (*sums)[rows_per_tile]) {
  if constexpr (F != Form::bfloat16) return multiply_codes<M, F>(codes, scales, tile, steps, sums);
#if defined(__AVX512BF16__)
  if constexpr (F == Form::bfloat16) return multiply_bfloat16<M>(codes, tile, steps, sums);
#endif
}

}  // namespace weighbridge::WB_ISA
