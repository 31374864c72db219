// What adapters add to a linear layer: y[i] += U_s D_s x[i] for each row i of a batch that goes through a slot s.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "team.h"

namespace weighbridge {

// Rows of the layer's output to which adapters add by a pair of matrices of their own: queries, keys or values.
// Each slot has room for `ranks` of LowRank; how many it holds is read at each call (0: it adds nothing here).
struct LowRankPart {
  const char *down;     // [slots][ranks * columns], of them [rank][columns]
  const char *up;       // [slots][ranks * rows], of them [rows / 16][rank][16]; the last tile is as narrow as its rows
  const int32_t *held;  // [slots]
  int64_t start, rows;
};

constexpr int max_low_rank_parts = 3, low_rank_tile = 16;

// `count` 0: nothing is ever added to the layer.
struct LowRank {
  LowRankPart parts[max_low_rank_parts];
  int count;
  int64_t columns, outputs, slots, ranks;
  Dtype dtype;  // of matrices, x and y
};

// Rows order[begin, end), which all go through one slot.
struct SlotRun {
  int32_t slot, begin, end;
};

struct LowRankArgs {
  void *y;        // [rows, outputs]
  const void *x;  // [rows, columns]
  const LowRank *matrices;
  const int32_t *order;
  const SlotRun *runs;
  int64_t num_runs;
  float *inner;  // D x: [as many rows as in order, count, ranks]
};

static constexpr int64_t inner_floats(const LowRank &matrices) { return matrices.count * matrices.ranks; }

struct LowRankKernels {
  // Called by every thread of the team once x and y are written; returns when all of y is. What a row becomes hangs
  // neither on the rows beside it nor on the number of threads.
  void (*add)(const LowRankArgs &, Team &);
};

}  // namespace weighbridge

WB_KERNEL_TABLE(LowRankKernels, low_rank)
