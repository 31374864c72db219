// y = x W^T + bias. Weights stay in 4 or 8 bits, and activations are rounded to 8 bits on the way; or both are
// bfloat16, on CPUs that multiply it.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "team.h"

namespace weighbridge {

// Weights [rows, columns] are cut into tiles of 16 rows; a register of 64 bytes holds neighbouring columns of row
// 0, then of row 1 ... (4 columns of a code, 2 of a bfloat16). Codes come in groups of 32 columns:
//
//   4 bits:   codes [tiles][groups][4][16][4], low half: register i, high half: register i + 4; code 0..15
//             scales float16 [tiles][groups][2][16]: scale, minimum; weight = multiplier * (scale * code + minimum)
//   8 bits:   codes [tiles][groups][8][16][4], code + 128
//             scales float16 [tiles][groups][16]; weight = multiplier * scale * code
//   16 bits:  bfloat16 [tiles][columns / 2][16][2], no scales
//
// Rows beyond the last are zero. Codes start on a 64-byte boundary.
struct PackedMatrix {
  const uint8_t *codes;
  const uint16_t *scales;
  const float *bias;  // [tiles * 16], or null
  float multiplier;
  int bits;
  int64_t rows, columns;
};

// Computes rows [begin, end) of a layer's input just before they are read; `run` null: the input is there.
struct Producer {
  void (*run)(const void *args, int64_t begin, int64_t end);
  const void *args;
};

struct LinearArgs {
  void *out;      // [tokens, rows], dtype
  const void *x;  // [tokens, columns], dtype (bfloat16 if the weights are)
  Dtype dtype;
  int64_t tokens;
  PackedMatrix matrix;
  uint8_t *scratch;   // token_bytes for each token of a block
  int64_t block;      // tokens laid out and multiplied at a time
  Producer producer;  // of x
};

constexpr int rows_per_tile = 16, columns_per_group = 32;

// A rounded token keeps, per group, 32 codes, their scale and a correction.
constexpr int64_t bytes_per_rounded_group = columns_per_group + 4 + 4;

// Scratch that one token takes once it is laid out for the inner loop.
constexpr int64_t scratch_bytes(int bits, int64_t columns) {
  return bits == 16 ? columns * 2 : columns / columns_per_group * bytes_per_rounded_group;
}

// Tokens of a block: its activations should stay in the second-level cache next to a tile of weights.
constexpr int64_t scratch_target_bytes = 512 * 1024, smallest_block = 96;

constexpr int64_t block_tokens(const PackedMatrix &matrix, int64_t tokens) {
  const int64_t fitting = scratch_target_bytes / scratch_bytes(matrix.bits, matrix.columns);
  const int64_t block = fitting > smallest_block ? fitting : smallest_block;
  return tokens < block ? tokens : block;
}

struct LinearKernels {
  bool multiplies_bfloat16;
  // Called by every thread of the team; returns when all of `out` is written.
  void (*linear)(const LinearArgs &, Team &);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(LinearKernels, linear)
