// One forward pass of a Llama-shaped decoder as one parallel region: embedding, layers, output matrix.
//
// The same kernels as one call each, in the same order, so the numbers are the same to the bit. What is saved
// is the way between them: some three hundred calls, forks and joins, and trips to the interpreter.
#pragma once

#include <cstdint>
#include <vector>

#include "attention_run.h"
#include "elementwise.h"
#include "kv_pool.h"
#include "linear.h"
#include "row_groups.h"

namespace weighbridge {

// A linear layer of the model, and what adapters add to it.
struct Projection {
  PackedMatrix matrix;
  LowRank added;

  Projection(const PackedMatrix &base, const LowRank &extra = {}) : matrix(base), added(extra) {}
};

// Addresses of what one layer keeps; the caller keeps the memory alive. Norms are float32.
struct LayerWeights {
  const float *input_norm, *post_attention_norm;
  const float *q_norm, *k_norm;  // each may be null
  Projection qkv, output, gate_up, down;
  bool rotates;
  int window;
};

struct ModelShape {
  int hidden, intermediate, num_heads, kv_heads, head_dim;
  float eps, scale;
  Dtype dtype;
};

struct ModelWeights {
  const void *embedding;  // [vocabulary, hidden], dtype; null: it is in `packed_embedding`
  PackedMatrix packed_embedding;
  int64_t vocabulary;
  const float *cos_sin;  // [positions, head_dim]
  int64_t positions;
  const float *final_norm;
  PackedMatrix lm_head;
};

// One batch; see BatchLayout in api.py. `tokens` may exceed the layout's: the rest is padding, which goes through
// the linear layers and nowhere else.
struct ForwardBatch {
  const int32_t *token_ids;  // [tokens]
  int64_t tokens, real_tokens;
  const int32_t *positions, *slots;  // [real_tokens]
  LayoutView layout;
  const int32_t *rows;  // ascending: the tokens that get logits
  int64_t num_rows;
  void *logits;  // [num_rows, lm_head rows], dtype
  const int32_t *state_rows;  // which of the rows leave what the output matrix read of them, too
  int64_t num_states;
  void *states;  // [num_states, hidden], dtype: behind the last norm
  const RowGroups *groups;  // of the tokens, by their adapters; null: none goes through one
};

class Forward {
 public:
  // Both throw std::invalid_argument for matrices of other shapes than the model's.
  Forward(const ModelShape &shape, const ModelWeights &weights);
  void add_layer(const LayerWeights &layer);

  const ModelShape &shape() const { return shape_; }
  int64_t outputs() const { return weights_.lm_head.rows; }

  // Throws std::out_of_range or std::invalid_argument for a batch that points outside the model or the pool.
  void run(const ForwardBatch &batch, const KvPool &pool, int threads);

 private:
  struct Workspace;
  struct Pass;
  std::vector<const Projection *> projections() const;
  void check(const ForwardBatch &batch, const KvPool &pool) const;
  Workspace lay_out(const ForwardBatch &batch);
  AttentionArgs attention_args(const Workspace &work, const KvPool &pool, const AttentionPlan &plan, int index) const;

  ModelShape shape_;
  ModelWeights weights_;
  std::vector<LayerWeights> layers_;
  Buffer memory_;
};

}  // namespace weighbridge
