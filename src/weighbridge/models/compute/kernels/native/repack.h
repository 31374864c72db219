// From the blocks of a GGUF file to the order in which the kernels read them. Not for kernel sources.
#pragma once

#include "linear_forms.h"
#include "memory.h"

namespace weighbridge {

// GGML's numbers of the types that are kept.
enum class Stored : int {
  q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14, iq4_nl = 20,
  iq4_xs = 23, mxfp4 = 39,
};

struct RepackArgs {
  uint8_t *codes, *scales;  // of all rows, as Form has them
  Form form;
  Stored stored;
  const uint8_t *blocks;  // [stored rows, row_bytes]
  const int64_t *order;   // [rows]: the stored row of each row
  int64_t rows, columns, row_bytes;
};

// The arguments, with memory of the right size. Throws std::invalid_argument for any other, for a type that is not kept in
// that form, and for rows outside the stored ones.
RepackArgs repack_args(Memory codes, Memory scales, int form, int stored, Memory blocks, const int64_t *order,
                       int64_t rows, int64_t columns);

// Fills codes and scales, losslessly. Returns whether every scale is finite.
bool repack(const RepackArgs &args, int threads);

}  // namespace weighbridge
