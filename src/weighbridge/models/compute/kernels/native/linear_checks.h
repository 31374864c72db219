// Whether memory is as large as a matrix says, and a matrix of the shape that a layer needs. Not for kernel sources.
#pragma once

#include "linear.h"
#include "memory.h"

namespace weighbridge {

// The matrix in this memory, `form` a number of Form. Throws std::invalid_argument for a form that no kernel of this
// process multiplies, and for memory of another size: the kernels read as much as the shape says.
PackedMatrix packed_matrix(Memory codes, Memory scales, Memory bias, float multiplier, int form, int64_t rows,
                           int64_t columns);

// The rows of both, one below the other, without the bias of either. Throws std::invalid_argument for different columns,
// too many parts, or rows in bfloat16.
PackedMatrix stacked(const PackedMatrix &above, const PackedMatrix &below);

// `matrix` with this bias, (0, 0) for none.
PackedMatrix with_bias(const PackedMatrix &matrix, Memory bias);

// Throws std::invalid_argument unless `matrix` has that shape and multiplies activations of `dtype`.
void check_shape(const PackedMatrix &matrix, const char *what, int64_t rows, int64_t columns, Dtype dtype);

}  // namespace weighbridge
