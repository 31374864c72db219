#include "linear_checks.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace weighbridge {

PackedMatrix packed_matrix(Memory codes, Memory scales, Memory bias, float multiplier, int number, int64_t rows,
                           int64_t columns) {
  if (!is_form(number)) throw std::invalid_argument("no form of weights has the number " + std::to_string(number));
  const Form form = static_cast<Form>(number);
  if (form == Form::bfloat16 && !active_linear().multiplies_bfloat16)
    throw std::invalid_argument("weights in 16 bits need kernels that multiply bfloat16");
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();
  if (rows < 1 || columns < 1 || rows > largest || columns > largest)
    throw std::invalid_argument("a packed matrix has at least one row and column, and no more than 31 bits count");
  if (columns % column_step(form) != 0) throw std::invalid_argument("the columns do not divide into groups");
  MatrixPart part{};
  part.codes = take<const uint8_t>(codes, tiles_of(rows) * tile_code_bytes(form, columns),
                                   "the codes of a packed matrix");
  if (form != Form::bfloat16)
    part.scales = take<const uint8_t>(scales, tiles_of(rows) * tile_scale_bytes(form, columns),
                                      "the scales of a packed matrix");
  part.form = form;
  part.multiplier = multiplier;
  part.rows = rows;
  return with_bias({{part}, 1, nullptr, rows, columns}, bias);
}

PackedMatrix stacked(const PackedMatrix &above, const PackedMatrix &below) {
  if (above.columns != below.columns) throw std::invalid_argument("matrices of different columns cannot be stacked");
  if (above.count + below.count > max_parts)
    throw std::invalid_argument("a matrix has no more than " + std::to_string(max_parts) + " parts");
  if (above.parts[0].form == Form::bfloat16 || below.parts[0].form == Form::bfloat16)
    throw std::invalid_argument("rows in bfloat16 are not stacked");
  PackedMatrix matrix = above;
  matrix.bias = nullptr;
  for (int p = 0; p < below.count; p++) matrix.parts[matrix.count++] = below.parts[p];
  matrix.rows += below.rows;
  return matrix;
}

PackedMatrix with_bias(const PackedMatrix &matrix, Memory bias) {
  PackedMatrix biased = matrix;
  biased.bias = take_if_there<const float>(bias, matrix.rows * (int64_t)sizeof(float), "the bias of a packed matrix");
  return biased;
}

void check_shape(const PackedMatrix &matrix, const char *what, int64_t rows, int64_t columns, Dtype dtype) {
  if (matrix.rows != rows || matrix.columns != columns)
    throw std::invalid_argument(std::string(what) + " has shape [" + std::to_string(matrix.rows) + ", " +
                                std::to_string(matrix.columns) + "], but the layer needs [" + std::to_string(rows) +
                                ", " + std::to_string(columns) + "]");
  if (matrix.parts[0].form == Form::bfloat16 && dtype != Dtype::bfloat16)
    throw std::invalid_argument(std::string(what) + " is in bfloat16, the activations are not");
}

}  // namespace weighbridge
