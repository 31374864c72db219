// Activations as the inner loop of a linear layer reads them: a tile of M tokens lies column by column, so that
// the loop walks one pointer and every broadcast is at a constant offset from it.
//
//   rounded    per group of 32 columns: codes [8][M][4], then [M] each of
//                scale (float), scale * sum of the codes (float), -128 * sum (int32), and behind them
//                  where sums grow in 32 bits (AVX-512)  -128 * sum of the first 16 (int32)
//                  elsewhere  three pairs of int16: -32 * sums of the first 16 columns, of the second 16, and -16 * sums
//                  of all 32. The first of a pair is of the columns that are first and second in their four
//   bfloat16   [columns / 2][M][2]
//
// The sums restore what unsigned codes of the weights leave out: a minimum is multiplied by the second number, and where
// codes are centred the integer sum starts from what centring takes off: on 128 from the third number, on 32 and on 16
// from the fourth or from the pairs, which lie as 16-bit sums of products do.
#pragma once

#include "linear.h"
#include "simd.h"

namespace weighbridge::WB_ISA {

constexpr int registers_per_group = 8;

#if defined(__AVX512F__)
constexpr int numbers_per_group = 4;
#else
constexpr int numbers_per_group = 6;
#endif
constexpr int64_t bytes_per_token_group = columns_per_group + 4 * numbers_per_group;
static_assert(bytes_per_token_group <= bytes_per_rounded_group);

WB_INLINE int32_t horizontal_max(IntVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#elif defined(__AVX2__)
  __m256i largest = _mm256_max_epi32((__m256i)v, _mm256_permute2x128_si256((__m256i)v, (__m256i)v, 1));
  largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0x4e));
  largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0xb1));
  return _mm256_extract_epi32(largest, 0);
#else
  int32_t largest = v[0];
  WB_UNROLL for (int i = 1; i < lanes; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

// Sums of the codes of 16 columns: of those that are first or second in their four, and of the others. Where sums grow in
// 32 bits (AVX-512) the first is of all.
struct PairSums {
  int16_t at[2];
};

struct Rounded {
  float scale;
  PairSums halves[2];
  int8_t codes[columns_per_group];
};

constexpr int registers_per_rounding = columns_per_group / lanes;

// Codes in 32 bits into bytes, and their sums.
WB_INLINE void narrow(Rounded &rounded, const IntVector (&codes)[registers_per_rounding]) {
#if defined(__AVX512F__)
  for (int half = 0; half < 2; half++) {
    _mm_storeu_si128((__m128i *)(rounded.codes + half * 16), _mm512_cvtepi32_epi8((__m512i)codes[half]));
    rounded.halves[half] = {{int16_t(_mm512_reduce_add_epi32((__m512i)codes[half])), 0}};
  }
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32((__m256i)codes[0], (__m256i)codes[1]);
  const __m256i high = _mm256_packs_epi32((__m256i)codes[2], (__m256i)codes[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing leaves fours of columns in turn
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  _mm256_storeu_si256((__m256i *)rounded.codes, bytes);
  __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0x4e));
  sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1));
  const int32_t first = _mm256_extract_epi32(sums, 0), second = _mm256_extract_epi32(sums, 4);
  std::memcpy(&rounded.halves[0], &first, 4);
  std::memcpy(&rounded.halves[1], &second, 4);
#else
  typedef int8_t Codes __attribute__((vector_size(lanes)));
  for (int i = 0; i < registers_per_rounding; i++) {
    const Codes bytes = __builtin_convertvector(codes[i], Codes);
    std::memcpy(rounded.codes + i * lanes, &bytes, sizeof bytes);
  }
  for (int half = 0; half < 2; half++)
    for (int pair = 0; pair < 2; pair++) {
      int sum = 0;
      for (int k = 16 * half + 2 * pair; k < 16 * half + 16; k += 4) sum += rounded.codes[k] + rounded.codes[k + 1];
      rounded.halves[half].at[pair] = int16_t(sum);
    }
#endif
}

// What -factor times these sums is in 16 bits. Codes of NaN are anything, and so are their sums.
WB_INLINE PairSums centring(int first, int second, int factor) {
  return {{int16_t(uint16_t(-factor * first)), int16_t(uint16_t(-factor * second))}};
}

// Symmetric rounding of one group to -127..127. A NaN makes the scale NaN, so that it reaches the output.
template <class T>
WB_INLINE Rounded round_group(const T *x) {
  constexpr int registers = registers_per_rounding;
  Vector values[registers];
  IntVector largest = {};
  WB_UNROLL for (int i = 0; i < registers; i++) {
    values[i] = load(x + i * lanes);
    const IntVector magnitude = (IntVector)((Bits)values[i] & 0x7fffffff);  // ordered like the floats
    largest = magnitude > largest ? magnitude : largest;
  }
  const int32_t bits = horizontal_max(largest);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof bits);
  const Vector inverse = splat(magnitude > 0 ? 127.0f / magnitude : 0.0f);
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  IntVector codes[registers];
  WB_UNROLL for (int i = 0; i < registers; i++)
    codes[i] = (IntVector)(values[i] * inverse + magic) - (IntVector)magic;
  Rounded rounded;
  narrow(rounded, codes);
  rounded.scale = magnitude / 127.0f;
  return rounded;
}

// The numbers of one token behind the codes of a group, `step` bytes from each to the next.
WB_INLINE void write_numbers(const Rounded &rounded, uint8_t *at, int64_t step) {
  const PairSums *halves = rounded.halves;
  const int first = halves[0].at[0] + halves[1].at[0], second = halves[0].at[1] + halves[1].at[1];
  const float weighted = rounded.scale * float(first + second);
  const int32_t offset = -128 * (first + second);
  std::memcpy(at, &rounded.scale, 4);
  std::memcpy(at + step, &weighted, 4);
  std::memcpy(at + 2 * step, &offset, 4);
#if defined(__AVX512F__)
  const int32_t half_offset = -128 * (halves[0].at[0] + halves[0].at[1]);
  std::memcpy(at + 3 * step, &half_offset, 4);
#else
  const PairSums pairs[3] = {centring(halves[0].at[0], halves[0].at[1], 32),
                             centring(halves[1].at[0], halves[1].at[1], 32), centring(first, second, 16)};
  for (int i = 0; i < 3; i++) std::memcpy(at + (3 + i) * step, &pairs[i], 4);
#endif
}

// Rounds `count` tokens from `token` on into one tile of scratch.
template <class T>
WB_INLINE void round_tile(const LinearArgs &args, int64_t token, int count, uint8_t *tile) {
  const int64_t columns = args.matrix.columns;
  for (int m = 0; m < count; m++) {
    const T *x = static_cast<const T *>(args.x) + (token + m) * columns;
    uint8_t *group = tile;
    for (int64_t k = 0; k < columns; k += columns_per_group, group += count * bytes_per_token_group) {
      const Rounded rounded = round_group(x + k);
      WB_UNROLL for (int i = 0; i < registers_per_group; i++)
        std::memcpy(group + (i * count + m) * 4, rounded.codes + i * 4, 4);
      write_numbers(rounded, group + count * columns_per_group + m * 4, count * 4);
    }
  }
}

// Copies `count` bfloat16 tokens into one tile, pairs of columns side by side.
WB_INLINE void interleave_tile(const LinearArgs &args, int64_t token, int count, uint8_t *tile) {
  const int64_t pairs = args.matrix.columns / 2;
  const uint8_t *x = static_cast<const uint8_t *>(args.x) + token * pairs * 4;
  for (int64_t k = 0; k < pairs; k++)
    for (int m = 0; m < count; m++) std::memcpy(tile + (k * count + m) * 4, x + (m * pairs + k) * 4, 4);
}

}  // namespace weighbridge::WB_ISA
