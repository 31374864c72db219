// Whether memory is as large as the matrices of adapters say. Not for kernel sources.
#pragma once

#include "memory.h"
#include "row_groups.h"

namespace weighbridge {

// Throws std::invalid_argument for sizes that are none.
LowRank low_rank_matrices(int64_t columns, int64_t outputs, int64_t slots, int64_t ranks, Dtype dtype);

// One more part. Throws std::invalid_argument for rows outside the layer, memory of another size, and too many parts.
void add_low_rank_part(LowRank &matrices, int64_t start, int64_t rows, Memory down, Memory up, Memory held);

// Throws std::invalid_argument for groups whose slots may be beyond those of the matrices.
void check_groups(const LowRank &matrices, const RowGroups &groups);

}  // namespace weighbridge
