// Activations as the inner loop of a linear layer reads them: a tile of M tokens lies column by column, so that
// the loop walks one pointer and every broadcast is at a constant offset from it.
//
//   rounded    per group of 32 columns: codes [8][M][4], scales [M], corrections [M]
//   bfloat16   [columns / 2][M][2]
//
// The correction restores what unsigned codes of the weights leave out: for 4 bits scale * sum(a) as float, to be
// multiplied by the minimum; for 8 bits -128 * sum(a) as int32, which the integer sum starts from.
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
  int32_t sum;
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
  IntVector sum = {};
  WB_UNROLL for (int i = 0; i < registers; i++) {
    const IntVector code = (IntVector)(values[i] * inverse + magic) - (IntVector)magic;
    const Codes narrow = __builtin_convertvector(code, Codes);
    std::memcpy(rounded.codes + i * lanes, &narrow, sizeof narrow);
    sum += code;
  }
  rounded.sum = horizontal_sum(sum);
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
      uint8_t *scales = group + count * columns_per_group;
      std::memcpy(scales + m * 4, &rounded.scale, 4);
      const float weighted_sum = rounded.scale * rounded.sum;
      const int32_t offset = int32_t(-128u * uint32_t(rounded.sum));  // wraps where codes of NaN are anything
      std::memcpy(scales + (count + m) * 4, args.matrix.bits == 4 ? (const void *)&weighted_sum : &offset, 4);
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
