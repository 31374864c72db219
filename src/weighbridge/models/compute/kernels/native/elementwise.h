// Everything of the decoder that is neither a matrix product nor attention. Rows [begin, end) of one call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace weighbridge {

struct NormArgs {
  void *out;        // [T, width], dtype
  float *residual;  // [T, width]
  const void *x;    // added to the residual first if not null: [T, width], dtype
  const float *weight;
  Dtype dtype;
  int64_t width;
  float eps;
};

struct RopeArgs {
  void *qkv;  // [T, (num_heads + 2 kv_heads) * head_dim]
  void *kv;   // this layer's blocks, see kv_layout.h
  Dtype dtype, kv_dtype;
  int num_heads, kv_heads, head_dim, block_size, kv_layers;
  const int32_t *positions, *slots;
  const float *cos_sin, *q_norm, *k_norm;  // each may be null
  float eps;
};

struct SiluArgs {
  void *out;            // [T, width]
  const void *gate_up;  // [T, 2 width]
  Dtype dtype;
  int64_t width;
};

struct GatherArgs {
  void *out;
  const void *table;
  Dtype out_dtype, table_dtype;
  const int32_t *rows;
  int64_t width;
};

struct ArgmaxArgs {
  int32_t *out;
  const void *logits;
  Dtype dtype;
  int64_t width;
};

struct ElementwiseKernels {
  void (*norm)(const NormArgs &, int64_t begin, int64_t end);
  void (*rope_and_write)(const RopeArgs &, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluArgs &, int64_t begin, int64_t end);
  void (*gather_rows)(const GatherArgs &, int64_t begin, int64_t end);
  void (*argmax)(const ArgmaxArgs &, int64_t begin, int64_t end);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(ElementwiseKernels, elementwise)
