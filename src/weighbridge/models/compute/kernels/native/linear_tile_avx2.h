// The product of one tile with AVX2: see linear_tile.h, which includes it.
//
// VPMADDUBSW multiplies codes without a sign with activations and adds pairs in 16 bits, where sums of a group stay as long
// as they fit. They always do for codes of 4 bits (8 * 2 * 15 * 127 = 30480). Wider ones are centred: sums then start
// from the pairs of a token, each may wrap around on the way, and the last fits again (16 * 16 * 127 = 32512 for 5 bits,
// 8 * 32 * 127 = 32512 for 16 columns of 6 bits). Codes of 8 bits are multiplied by their magnitude, their sign is put on
// the activation, and each register is a sum of its own. From 16 to 32 bits sums go by VPMADDWD, which multiplies them
// with the scale of the row on the way where that is a small integer: the K types.
#pragma once

#include "linear_activations.h"
#include "linear_codes.h"

namespace weighbridge::WB_ISA {

// Bytes ahead of the codes that are multiplied which are asked for: the hardware stops at each page.
constexpr int prefetch_bytes = 2048;

typedef uint16_t Shifted __attribute__((vector_size(32)));

// Registers of eight rows that M tokens are multiplied with at a time: a whole tile where accumulators leave room for it.
template <int M>
constexpr int octets = M <= 2 ? 2 : 1;

WB_INLINE __m256i load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
WB_INLINE __m256i broadcast(const uint8_t *p) { return _mm256_set1_epi32(read<int32_t>(p)); }
WB_INLINE __m256 broadcast_float(const uint8_t *p) { return _mm256_set1_ps(read<float>(p)); }
WB_INLINE __m256 load_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

WB_INLINE __m256 load_bytes(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

WB_INLINE __m256 load_signed_bytes(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

// Bytes of eight rows, each twice in 16 bits.
template <bool with_sign>
WB_INLINE __m256i load_factors(const uint8_t *p) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadl_epi64((const __m128i *)p));
  constexpr char no = -1;  // a zero
  if (with_sign) {
    const __m256i high = _mm256_setr_epi8(no, 0, no, 0, no, 1, no, 1, no, 2, no, 2, no, 3, no, 3, no, 4, no, 4, no, 5, no,
                                          5, no, 6, no, 6, no, 7, no, 7);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, high), 8);
  }
  return _mm256_shuffle_epi8(bytes, _mm256_setr_epi8(0, no, 0, no, 1, no, 1, no, 2, no, 2, no, 3, no, 3, no, 4, no, 4, no,
                                                     5, no, 5, no, 6, no, 6, no, 7, no, 7, no));
}

// Forms whose codes are multiplied by their magnitude.
static constexpr bool by_magnitude(Form form) { return zero_of(form) == 128; }

// Forms with an integer of the row for a scale, which is multiplied before sums become floats.
static constexpr bool by_factor(Form form) { return form == Form::q4_k || form == Form::q5_k || form == Form::q6_k; }

// Eight rows of register i of a group, each code in a byte; with its sign where it is multiplied by magnitude.
template <Form F>
WB_INLINE __m256i code_register(const uint8_t *codes, int i) {
  if (F == Form::q8_0) return _mm256_xor_si256(load_codes(codes + i * 64), _mm256_set1_epi8(-128));
  const __m256i pair = load_codes(codes + (i & 3) * 64);
  const __m256i low = _mm256_and_si256((__m256i)((Shifted)pair >> (i & 4)), _mm256_set1_epi8(0x0f));
  if (has_table(F)) {
    const __m128i table = _mm_xor_si128(_mm_load_si128((const __m128i *)table_of<F>()), _mm_set1_epi8(-128));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), low);
  }
  if (high_bits(F) == 0) return low;
  const int at = high_bits(F) == 1 ? i : 2 * (i & 3);
  const Shifted bits = (Shifted)load_codes(codes + 256 + (high_bits(F) == 1 ? 0 : (i >> 2) * 64));
  const __m256i high = (__m256i)(at <= 4 ? bits << (4 - at) : bits >> (at - 4));
  return _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi8(high_bits(F) == 1 ? 0x10 : 0x30)), low);
}

// Sums of registers [begin, end) in 16 bits, added to what is in `small`.
template <int M, int R, Form F, int begin, int end>
WB_INLINE void add_registers(__m256i (&small)[R][M], const uint8_t *codes, const uint8_t *group) {
  WB_UNROLL for (int k = 0; k < end - begin; k++) {
    const int i = begin + (end - begin == 8 ? (k >> 1) + (k & 1) * 4 : k);  // neighbours in memory one after the other
    __m256i code[R];
    WB_UNROLL for (int r = 0; r < R; r++) code[r] = code_register<F>(codes + r * 32, i);
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
      const __m256i a = broadcast(group + (i * M + m) * 4);
      WB_UNROLL for (int r = 0; r < R; r++) {
        small[r][m] = _mm256_add_epi16(small[r][m], _mm256_maddubs_epi16(code[r], a));
        WB_KEEP_IN_REGISTER(small[r][m]);  // a tree of sums would keep all of its leaves in memory
      }
    }
  }
}

// The sum of a group in 32 bits, codes of 8 bits.
template <int M, int R, Form F>
WB_INLINE void sum_magnitudes(__m256i (&acc)[R][M], const uint8_t *codes, const uint8_t *group) {
  const __m256i ones = _mm256_set1_epi16(1);
  WB_UNROLL for (int r = 0; r < R; r++)
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) acc[r][m] = _mm256_setzero_si256();
  WB_UNROLL for (int k = 0; k < registers_per_group; k++) {
    const int i = F == Form::q8_0 ? k : (k >> 1) + (k & 1) * 4;
    __m256i code[R], magnitude[R];
    WB_UNROLL for (int r = 0; r < R; r++) {
      code[r] = code_register<F>(codes + r * 32, i);
      magnitude[r] = _mm256_abs_epi8(code[r]);
    }
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
      const __m256i a = broadcast(group + (i * M + m) * 4);
      WB_UNROLL for (int r = 0; r < R; r++) {
        const __m256i products = _mm256_maddubs_epi16(magnitude[r], _mm256_sign_epi8(a, code[r]));
        acc[r][m] = _mm256_add_epi32(acc[r][m], _mm256_madd_epi16(products, ones));
        WB_KEEP_IN_REGISTER(acc[r][m]);
      }
    }
  }
}

// The sum of a group in 32 bits, codes of up to 6 bits; multiplied with the row's factors. q6_k has two of them.
template <int M, int R, Form F>
WB_INLINE void sum_products(__m256i (&acc)[R][M], const uint8_t *codes, const uint8_t *group,
                            const __m256i (&factors)[2][R]) {
  const TokenNumbers<M> numbers = numbers_of<M>(group);
  __m256i small[R][M];
  if constexpr (F == Form::q6_k) {
    WB_UNROLL for (int r = 0; r < R; r++)
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) small[r][m] = broadcast(numbers.first_pairs + m * 4);
    add_registers<M, R, F, 0, 4>(small, codes, group);
    WB_UNROLL for (int r = 0; r < R; r++)
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
        acc[r][m] = _mm256_madd_epi16(small[r][m], factors[0][r]);
        small[r][m] = broadcast(numbers.second_pairs + m * 4);
      }
    add_registers<M, R, F, 4, 8>(small, codes, group);
    WB_UNROLL for (int r = 0; r < R; r++)
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
        acc[r][m] = _mm256_add_epi32(acc[r][m], _mm256_madd_epi16(small[r][m], factors[1][r]));
  } else {
    WB_UNROLL for (int r = 0; r < R; r++)
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
        small[r][m] = high_bits(F) == 1 ? broadcast(numbers.pairs + m * 4) : _mm256_setzero_si256();
    add_registers<M, R, F, 0, 8>(small, codes, group);
    WB_UNROLL for (int r = 0; r < R; r++)
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) acc[r][m] = _mm256_madd_epi16(small[r][m], factors[0][r]);
  }
}

// What a group's sums are multiplied with and what is added, for eight rows: scales where they are floats.
template <int R>
struct GroupLines {
  __m256 scale[R], minimum[R];
  __m256i factors[2][R];
};

// `halves` and `bytes` are the scales of the first row in either shape; d and dmin those of the head.
template <Form F, int R>
WB_INLINE GroupLines<R> lines_of(const uint8_t *halves, const uint8_t *bytes, const __m256 (&d)[R],
                                 const __m256 (&dmin)[R]) {
  GroupLines<R> lines;
  WB_UNROLL for (int r = 0; r < R; r++) {
    const uint8_t *half = halves + r * 16, *byte = bytes + r * 8;
    lines.factors[0][r] = lines.factors[1][r] = _mm256_set1_epi16(1);
    lines.scale[r] = lines.minimum[r] = d[r];
    if (!has_head(F)) lines.scale[r] = load_halves(half);
    if (!has_head(F) && has_minimum(F)) lines.minimum[r] = load_halves(half + 32);
    if (F == Form::iq4_xs) lines.scale[r] = _mm256_mul_ps(d[r], load_signed_bytes(byte));
    if (F == Form::q4_k || F == Form::q5_k) {
      lines.factors[0][r] = load_factors<false>(byte);
      lines.minimum[r] = _mm256_mul_ps(dmin[r], load_bytes(byte + 16));
    }
    if (F == Form::q6_k) {
      lines.factors[0][r] = load_factors<true>(byte);
      lines.factors[1][r] = load_factors<true>(byte + 16);
    }
    if (F == Form::q4_0) lines.minimum[r] = _mm256_mul_ps(lines.scale[r], _mm256_set1_ps(-8.0f));
    // 5 bits are centred on 16 in any case: what has its zero elsewhere gets that back.
    const __m256 sixteen = _mm256_set1_ps(16.0f);
    if (F == Form::q5_1) lines.minimum[r] = _mm256_fmadd_ps(lines.scale[r], sixteen, lines.minimum[r]);
    if (F == Form::q5_k)
      lines.minimum[r] =
          _mm256_fmadd_ps(_mm256_mul_ps(d[r], load_bytes(byte)), sixteen, lines.minimum[r]);
  }
  return lines;
}

// total += a group; where scales are factors, what d is yet to be multiplied with goes to `scaled`.
template <int M, int R, Form F>
WB_INLINE void add_group(__m256 (&total)[R][M], __m256 (&scaled)[R][M], const uint8_t *codes, const uint8_t *group,
                         const GroupLines<R> &lines) {
  const TokenNumbers<M> numbers = numbers_of<M>(group);
  __m256i acc[R][M];
  if constexpr (by_magnitude(F))
    sum_magnitudes<M, R, F>(acc, codes, group);
  else
    sum_products<M, R, F>(acc, codes, group, lines.factors);
  WB_UNROLL_TOKENS for (int m = 0; m < M; m++) {
    const __m256 scale = broadcast_float(numbers.scales + m * 4);
    WB_UNROLL for (int r = 0; r < R; r++) {
      const __m256 sum = _mm256_cvtepi32_ps(acc[r][m]);
      if constexpr (by_factor(F))
        scaled[r][m] = _mm256_fmadd_ps(sum, scale, scaled[r][m]);
      else
        total[r][m] = _mm256_fmadd_ps(sum, _mm256_mul_ps(lines.scale[r], scale), total[r][m]);
      if constexpr (has_minimum(F) || F == Form::q4_0)
        total[r][m] = _mm256_fmadd_ps(lines.minimum[r], broadcast_float(numbers.weighted_sums + m * 4), total[r][m]);
    }
  }
}

template <Form F>
WB_INLINE void prefetch_group(const uint8_t *codes) {
  constexpr int lines = layout_of(F).code_bytes / 64;
  WB_UNROLL for (int line = 0; line < lines; line++)
    _mm_prefetch((const char *)codes + line * 64 + prefetch_bytes, _MM_HINT_T0);
}

// R times eight rows of a tile, from `first_row` on.
template <int M, int R, Form F>
WB_INLINE void multiply_octets(const uint8_t *codes, const uint8_t *scales, int first_row, const uint8_t *tile,
                               int64_t groups, float (*sums)[rows_per_tile]) {
  constexpr FormLayout layout = layout_of(F);
  codes += first_row * 4;
  __m256 total[R][M];
  WB_UNROLL for (int r = 0; r < R; r++)
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) total[r][m] = _mm256_setzero_ps();
  for (int64_t first = 0; first < groups; first += layout.head_groups) {
    __m256 d[R], dmin[R], scaled[R][M];
    WB_UNROLL for (int r = 0; r < R; r++) {
      d[r] = dmin[r] = _mm256_setzero_ps();
      if (has_head(F)) d[r] = load_halves(scales + (first_row + r * 8) * 2);
      if (has_head(F) && has_minimum(F))
        dmin[r] = _mm256_sub_ps(dmin[r], load_halves(scales + 32 + (first_row + r * 8) * 2));
      WB_UNROLL_TOKENS for (int m = 0; m < M; m++) scaled[r][m] = _mm256_setzero_ps();
    }
    scales += layout.head_bytes;
    for (int g = 0; g < layout.head_groups; g++) {
      if (first_row == 0) prefetch_group<F>(codes);
      add_group<M, R, F>(total, scaled, codes, tile,
                         lines_of<F, R>(scales + first_row * 2, scales + first_row, d, dmin));
      codes += layout.code_bytes;
      scales += layout.scale_bytes;
      tile += M * bytes_per_token_group;
    }
    if constexpr (by_factor(F)) {
      WB_UNROLL for (int r = 0; r < R; r++)
        WB_UNROLL_TOKENS for (int m = 0; m < M; m++)
          total[r][m] = _mm256_fmadd_ps(d[r], scaled[r][m], total[r][m]);
    }
  }
  WB_UNROLL for (int r = 0; r < R; r++)
    WB_UNROLL_TOKENS for (int m = 0; m < M; m++) _mm256_storeu_ps(sums[m] + first_row + r * 8, total[r][m]);
}

template <int M, Form F>
void multiply_codes(const uint8_t *codes, const uint8_t *scales, const uint8_t *tile, int64_t groups,
                    float (*sums)[rows_per_tile]) {
  for (int first_row = 0; first_row < rows_per_tile; first_row += 8 * octets<M>)
    multiply_octets<M, octets<M>, F>(codes, scales, first_row, tile, groups, sums);
}

}  // namespace weighbridge::WB_ISA
