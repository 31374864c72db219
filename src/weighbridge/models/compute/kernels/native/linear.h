// y = x W^T + bias. Weights stay in few bits, and activations are rounded to 8 bits on the way; or both are bfloat16, on
// CPUs that multiply it.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "linear_forms.h"
#include "team.h"

namespace weighbridge {

// Neighbouring rows in one form. weight = multiplier * what the form says. Codes start on a 64-byte boundary.
struct MatrixPart {
  const uint8_t *codes, *scales;  // no scales in bfloat16
  Form form;
  float multiplier;
  int64_t rows;
};

// Parts a matrix may have: queries, keys and values can each come in a form of their own.
constexpr int max_parts = 3;

// Parts one below the other. A part in bfloat16 stands alone.
struct PackedMatrix {
  MatrixPart parts[max_parts];
  int count;
  const float *bias;  // [rows], or null
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
  uint8_t *scratch;   // scratch_bytes for each token of a block
  int64_t block;      // tokens laid out and multiplied at a time
  Producer producer;  // of x
};

// A rounded token keeps, per group, 32 codes and up to six numbers of 32 bits: see linear_activations.h.
constexpr int64_t bytes_per_rounded_group = columns_per_group + 6 * 4;

// Scratch that one token takes once it is laid out for the inner loop.
static constexpr int64_t scratch_bytes(const PackedMatrix &matrix) {
  return matrix.parts[0].form == Form::bfloat16 ? matrix.columns * 2
                                                : matrix.columns / columns_per_group * bytes_per_rounded_group;
}

// Tokens of a block: its activations should stay in the second-level cache next to a tile of weights.
constexpr int64_t scratch_target_bytes = 512 * 1024, smallest_block = 96;

static constexpr int64_t block_tokens(const PackedMatrix &matrix, int64_t tokens) {
  const int64_t fitting = scratch_target_bytes / scratch_bytes(matrix);
  const int64_t block = fitting > smallest_block ? fitting : smallest_block;
  return tokens < block ? tokens : block;
}

// Rows of a matrix as float32: out[i] = matrix[ids[i]] for i in [begin, end), ids inside the matrix.
struct ReadRowsArgs {
  float *out;  // [ids, columns]
  const int32_t *ids;
  PackedMatrix matrix;
};

struct LinearKernels {
  bool multiplies_bfloat16;
  // Called by every thread of the team; returns when all of `out` is written.
  void (*linear)(const LinearArgs &, Team &);
  void (*read_rows)(const ReadRowsArgs &, int64_t begin, int64_t end);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(LinearKernels, linear)
