// y = x W^T + bias with weights kept in 4 or 8 bits and activations rounded to 8 bits on the way.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace weighbridge {

// Weights [rows, columns] are cut into tiles of 16 rows and groups of 32 columns. 16 x 4 codes make one register
// of 64 bytes (4 neighbouring columns of row 0, then of row 1 ...), and 8 registers a group:
//
//   4 bits: codes [tiles][groups][4][16][4], low half: register i, high half: register i + 4; code 0..15
//           scales float16 [tiles][groups][2][16]: scale, minimum; weight = multiplier * (scale * code + minimum)
//   8 bits: codes [tiles][groups][8][16][4], code + 128
//           scales float16 [tiles][groups][16]; weight = multiplier * scale * code
//
// Rows beyond the last are zero. Codes start on a 64-byte boundary.
struct QuantizedMatrix {
  const uint8_t *codes;
  const uint16_t *scales;
  const float *bias;  // [tiles * 16], or null
  float multiplier;
  int bits;
  int64_t rows, columns;
};

struct QuantizedLinearArgs {
  void *out;      // [tokens, rows], dtype
  const void *x;  // [tokens, columns], dtype
  Dtype dtype;
  int64_t tokens;
  QuantizedMatrix matrix;
  void *scratch;          // room for `block` rounded tokens: scratch_bytes(block, columns)
  int64_t block;          // tokens rounded and multiplied at a time
  int threads;
};

constexpr int rows_per_tile = 16, columns_per_group = 32;

// A rounded token keeps, per group, 32 codes, their scale and a correction.
constexpr int64_t bytes_per_rounded_group = columns_per_group + 4 + 4;

struct LinearKernels {
  void (*quantized)(const QuantizedLinearArgs &);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(LinearKernels, linear)
