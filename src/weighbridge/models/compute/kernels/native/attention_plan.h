// How the attention of one batch is cut into items. Depends on the layout only, so all layers share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.h"

namespace weighbridge {

// A view of BatchLayout's arrays.
struct LayoutView {
  const int32_t *query_starts, *context_lens, *block_tables;
  int64_t sequences, max_blocks;
};

struct AttentionShape {
  int num_heads, kv_heads, block_size, num_blocks, window, threads;
  int64_t tokens;

  bool operator==(const AttentionShape &other) const {
    return num_heads == other.num_heads && kv_heads == other.kv_heads && block_size == other.block_size &&
           num_blocks == other.num_blocks && window == other.window && threads == other.threads &&
           tokens == other.tokens;
  }
};

class AttentionPlan {
 public:
  // Throws std::invalid_argument if the layout contradicts itself or points outside the pool.
  AttentionPlan(const LayoutView &layout, const AttentionShape &shape);

  bool matches(const LayoutView &layout, const AttentionShape &shape) const;

  std::vector<int32_t> query_starts, context_lens, block_tables;
  int64_t max_blocks;
  std::vector<AttentionItem> items;  // heavy ones first
  std::vector<AttentionMerge> merges;
  int num_partials = 0;
  int64_t pairs = 0;  // (query head, key) pairs, those of skipped blocks left out

 private:
  void check(const LayoutView &layout) const;
  int64_t cost(int64_t sequence) const;
  void add_tile(int sequence, int kv_head, int row_begin, int row_end, int64_t target);

  AttentionShape shape_;
};

constexpr size_t plans_kept = 4;  // one for each size of the windows of a model's layers

// The plan of this batch: the calling thread's last few are kept, the latest of them longest.
const AttentionPlan &attention_plan(const LayoutView &layout, const AttentionShape &shape);

}  // namespace weighbridge
