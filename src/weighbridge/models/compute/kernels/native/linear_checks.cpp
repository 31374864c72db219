#include "linear_checks.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace weighbridge {

PackedMatrix packed_matrix(Memory codes, Memory scales, Memory bias, float multiplier, int bits, int64_t rows,
                           int64_t columns) {
  if (bits != 4 && bits != 8 && !(bits == 16 && active_linear().multiplies_bfloat16))
    throw std::invalid_argument("weights must be in 4 or 8 bits, or in 16 where the kernels multiply bfloat16");
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();
  if (rows < 1 || columns < 1 || rows > largest || columns > largest)
    throw std::invalid_argument("a packed matrix has at least one row and column, and no more than 31 bits count");
  if (columns % (bits == 16 ? 2 : columns_per_group) != 0)
    throw std::invalid_argument("the columns do not divide into groups");
  const int64_t padded = (rows + rows_per_tile - 1) / rows_per_tile * rows_per_tile;
  const int64_t scales_of_row = bits == 16 ? 0 : columns / columns_per_group * (bits == 4 ? 2 : 1);
  PackedMatrix matrix{};
  matrix.codes = take<const uint8_t>(codes, padded * columns / 8 * bits, "the codes of a packed matrix");
  if (bits != 16)
    matrix.scales = take<const uint16_t>(scales, padded * scales_of_row * 2, "the scales of a packed matrix");
  matrix.bias = take_if_there<const float>(bias, padded * (int64_t)sizeof(float), "the bias of a packed matrix");
  matrix.multiplier = multiplier;
  matrix.bits = bits;
  matrix.rows = rows;
  matrix.columns = columns;
  return matrix;
}

void check_shape(const PackedMatrix &matrix, const char *what, int64_t rows, int64_t columns, Dtype dtype) {
  if (matrix.rows != rows || matrix.columns != columns)
    throw std::invalid_argument(std::string(what) + " has shape [" + std::to_string(matrix.rows) + ", " +
                                std::to_string(matrix.columns) + "], but the layer needs [" + std::to_string(rows) +
                                ", " + std::to_string(columns) + "]");
  if (matrix.bits == 16 && dtype != Dtype::bfloat16)
    throw std::invalid_argument(std::string(what) + " is in bfloat16, the activations are not");
}

}  // namespace weighbridge
