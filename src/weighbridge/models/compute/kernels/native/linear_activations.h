// Activations as the inner loop of a linear layer reads them: a tile of M tokens lies column by column, so that
// the loop walks one pointer and every broadcast is at a constant offset from it.
//
//   rounded    per group of 32 columns: codes [8][M][4], then [M] each of
//                scale (float), scale * sum of the codes (float), -128 * sum (int32), -128 * sum of the first 16 (int32)
//   bfloat16   [columns / 2][M][2]
//
// The sums restore what unsigned codes of the weights leave out: a minimum is multiplied by the second number, and where
// codes are centred, on 128 or on less, the integer sum starts from the third and fourth, or from a part of them.
#pragma once

#include "linear.h"
#include "simd.h"

namespace weighbridge::WB_ISA {

constexpr int registers_per_group = 8;

WB_INLINE int32_t horizontal_max(IntVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t largest = v[0];
  WB_UNROLL for (int i = 1; i < lanes; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

WB_INLINE int32_t horizontal_sum(IntVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  WB_UNROLL for (int i = 0; i < lanes; i++) sum += v[i];
  return sum;
#endif
}

struct Rounded {
  float scale;
  int32_t sums[2];  // of 16 codes each
  int8_t codes[columns_per_group];
};

// Symmetric rounding of one group to -127..127. A NaN makes the scale NaN, so that it reaches the output.
template <class T>
WB_INLINE Rounded round_group(const T *x) {
  constexpr int registers = columns_per_group / lanes;
  typedef int8_t Codes __attribute__((vector_size(lanes)));
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
  Rounded rounded;
  IntVector sums[2] = {};
  WB_UNROLL for (int i = 0; i < registers; i++) {
    const IntVector code = (IntVector)(values[i] * inverse + magic) - (IntVector)magic;
    const Codes narrow = __builtin_convertvector(code, Codes);
    std::memcpy(rounded.codes + i * lanes, &narrow, sizeof narrow);
    sums[i * 2 / registers] += code;
  }
  rounded.sums[0] = horizontal_sum(sums[0]);
  rounded.sums[1] = horizontal_sum(sums[1]);
  rounded.scale = magnitude / 127.0f;
  return rounded;
}

// Rounds `count` tokens from `token` on into one tile of scratch.
template <class T>
WB_INLINE void round_tile(const LinearArgs &args, int64_t token, int count, uint8_t *tile) {
  const int64_t columns = args.matrix.columns;
  for (int m = 0; m < count; m++) {
    const T *x = static_cast<const T *>(args.x) + (token + m) * columns;
    uint8_t *group = tile;
    for (int64_t k = 0; k < columns; k += columns_per_group, group += count * bytes_per_rounded_group) {
      const Rounded rounded = round_group(x + k);
      WB_UNROLL for (int i = 0; i < registers_per_group; i++)
        std::memcpy(group + (i * count + m) * 4, rounded.codes + i * 4, 4);
      uint8_t *numbers = group + count * columns_per_group;
      const uint32_t sum = uint32_t(rounded.sums[0]) + uint32_t(rounded.sums[1]);
      const float weighted = rounded.scale * int32_t(sum);
      const uint32_t offset = -128u * sum, first = -128u * uint32_t(rounded.sums[0]);  // codes of NaN are anything
      std::memcpy(numbers + m * 4, &rounded.scale, 4);
      std::memcpy(numbers + (count + m) * 4, &weighted, 4);
      std::memcpy(numbers + (2 * count + m) * 4, &offset, 4);
      std::memcpy(numbers + (3 * count + m) * 4, &first, 4);
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
