// Whether memory is as large as a matrix says, and a matrix of the shape that a layer needs. Not for kernel sources.
#pragma once

#include "linear.h"
#include "memory.h"

namespace weighbridge {

// The matrix in this memory. Throws std::invalid_argument for a form that no kernel of this process multiplies, and for
// memory of another size: the kernels read as much as the shape says.
PackedMatrix packed_matrix(Memory codes, Memory scales, Memory bias, float multiplier, int bits, int64_t rows,
                           int64_t columns);

// Throws std::invalid_argument unless `matrix` has that shape and multiplies activations of `dtype`.
void check_shape(const PackedMatrix &matrix, const char *what, int64_t rows, int64_t columns, Dtype dtype);

}  // namespace weighbridge
