// Paged attention, cut into items that threads take one by one.
//
// The rows of an item are (query row, head of the group) pairs of one sequence and one KV head, numbered
// query row * group + head: all of them read the same keys and values. See attention.cpp for the arithmetic.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace weighbridge {

constexpr int tile_rows = 48;    // rows of an item, at most
constexpr int group_keys = 128;  // keys between two updates of the running maximum; a multiple of every block size

struct AttentionArgs {
  const void *queries;  // row t at t * query_stride elements
  void *out;            // [T, num_heads * head_dim]
  const void *kv;       // this layer's blocks, see kv_layout.h
  Dtype dtype;          // of queries and out
  Dtype kv_dtype;
  int num_heads, kv_heads, head_dim, block_size, kv_layers;
  int64_t query_stride;
  float scale;
  int window;
  float softcap;       // 0: none
  const float *sinks;  // [num_heads]: a score without a value, beside a head's keys; null: none
  const int32_t *query_starts, *context_lens, *block_tables;
  int64_t max_blocks;
};

struct AttentionItem {
  int32_t sequence, kv_head;
  int32_t row_begin, row_end;
  int32_t key_begin, key_end;  // key_begin at the start of a block
  int32_t partial;             // -1: writes its rows of `out`; else writes this slot of the partial results
};

// Rows of one tile whose keys were cut into `parts` items with consecutive partial slots.
struct AttentionMerge {
  int32_t sequence, kv_head;
  int32_t row_begin, row_end;
  int32_t first_partial, parts;
};

struct AttentionKernels {
  // Floats of one partial result: maxima, sums and unnormalised outputs of tile_rows rows.
  int64_t (*partial_floats)(const AttentionArgs &);
  // Bytes of scratch, aligned to 64, that one thread needs.
  int64_t (*scratch_bytes)(const AttentionArgs &);
  // `following`: what this thread will probably run next, so that its memory can be fetched; may be null.
  void (*run)(const AttentionArgs &, const AttentionItem &, const AttentionItem *following, float *partials,
              char *scratch);
  void (*merge)(const AttentionArgs &, const AttentionMerge &, const float *partials);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(AttentionKernels, attention)
