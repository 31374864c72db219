#include "low_rank_checks.h"

#include <stdexcept>

namespace weighbridge {

LowRank low_rank_matrices(int64_t columns, int64_t outputs, int64_t slots, int64_t ranks, Dtype dtype) {
  for (const int64_t size : {columns, outputs, slots, ranks})
    if (size < 1 || size > INT32_MAX) throw std::invalid_argument("these are no sizes of adapters of a layer");
  if (dtype != Dtype::float32 && dtype != Dtype::bfloat16)
    throw std::invalid_argument("adapters are in float32 or bfloat16");
  LowRank matrices{};
  matrices.columns = columns;
  matrices.outputs = outputs;
  matrices.slots = slots;
  matrices.ranks = ranks;
  matrices.dtype = dtype;
  return matrices;
}

void add_low_rank_part(LowRank &matrices, int64_t start, int64_t rows, Memory down, Memory up, Memory held) {
  if (matrices.count == max_low_rank_parts) throw std::invalid_argument("a layer has too many parts for adapters");
  if (start < 0 || rows < 1 || rows > matrices.outputs || start > matrices.outputs - rows)
    throw std::invalid_argument("a part for adapters is outside the rows of its layer");
  const int64_t room = matrices.slots * matrices.ranks * (matrices.dtype == Dtype::bfloat16 ? 2 : 4);
  LowRankPart part{};
  part.down = take<const char>(down, room * matrices.columns, "the first matrices of adapters");
  part.up = take<const char>(up, room * rows, "the second matrices of adapters");
  part.held = take<const int32_t>(held, matrices.slots * (int64_t)sizeof(int32_t), "the ranks of adapters");
  part.start = start;
  part.rows = rows;
  matrices.parts[matrices.count++] = part;
}

void check_groups(const LowRank &matrices, const RowGroups &groups) {
  if (matrices.count > 0 && groups.limit() > matrices.slots)
    throw std::invalid_argument("the rows go through slots that the layer does not have");
}

}  // namespace weighbridge
