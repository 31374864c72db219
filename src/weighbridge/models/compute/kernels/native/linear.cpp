// Weights are read once for a tile of tokens; tiles of rows are claimed by the threads of a team.
#include "linear.h"

#include "linear_tile.h"
#include "simd.h"

namespace weighbridge::WB_ISA {

// Tokens of the largest tile, bounded by the accumulators that registers hold.
#if defined(__AVX512F__)
template <bool dense>
constexpr int max_tile = dense ? 24 : 12;
#elif defined(__AVX2__)
template <bool dense>
constexpr int max_tile = 6;
#else
template <bool dense>
constexpr int max_tile = 4;
#endif

WB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

using Multiply = void (*)(const uint8_t *, const uint8_t *, const uint8_t *, int64_t, float (*)[rows_per_tile]);

template <Form F, int M = max_tile<F == Form::bfloat16>>
Multiply multiply_of(int count) {
  if constexpr (M > 1)
    if (count < M) return multiply_of<F, M - 1>(count);
  return multiply_tile<M, F>;
}

// body.template operator()<F>() for the form of a part.
#define WB_CASE_FORM(F, expression) \
  case Form::F: {                   \
    constexpr Form form = Form::F;  \
    return expression;              \
  }
#define WB_FOR_FORM(which, expression)                                                                            \
  switch (which) {                                                                                                \
    WB_CASE_FORM(q4_0, expression)                                                                                \
    WB_CASE_FORM(q4_1, expression)                                                                                \
    WB_CASE_FORM(q5_0, expression)                                                                                \
    WB_CASE_FORM(q5_1, expression)                                                                                \
    WB_CASE_FORM(q8_0, expression)                                                                                \
    WB_CASE_FORM(q4_k, expression)                                                                                \
    WB_CASE_FORM(q5_k, expression)                                                                                \
    WB_CASE_FORM(q6_k, expression)                                                                                \
    WB_CASE_FORM(iq4_nl, expression)                                                                              \
    WB_CASE_FORM(iq4_xs, expression)                                                                              \
    WB_CASE_FORM(mxfp4, expression)                                                                               \
    default: break;                                                                                               \
  }

static Multiply multiply_of(Form which, int count) {
  WB_FOR_FORM(which, multiply_of<form>(count))
#if defined(__AVX512BF16__)
  return multiply_of<Form::bfloat16>(count);
#else
  return nullptr;  // no such matrix is ever made: see linear_checks.cpp
#endif
}

template <bool dense, class T>
WB_INLINE void lay_out_tile(const LinearArgs &args, int64_t token, int count, uint8_t *tile) {
  if constexpr (dense)
    interleave_tile(args, token, count, tile);
  else
    round_tile<T>(args, token, count, tile);
}

// Rows [row, row + valid) of a part in the tile `sums`.
template <class T>
WB_INLINE void write_tile(const LinearArgs &args, float multiplier, int64_t token, int count, int64_t row, int valid,
                          float (*sums)[rows_per_tile]) {
  const PackedMatrix &matrix = args.matrix;
  for (int m = 0; m < count; m++) {
    T *out = static_cast<T *>(args.out) + (token + m) * matrix.rows + row;
    for (int n = 0; n < valid; n += lanes) {
      Vector y = load(sums[m] + n) * multiplier;
      if (n + lanes <= valid) {
        if (matrix.bias != nullptr) y += load(matrix.bias + row + n);
        store(out + n, y);
      } else {
        if (matrix.bias != nullptr) y += load_part(matrix.bias + row + n, valid - n);
        store_part(out + n, y, valid - n);
      }
    }
  }
}

// Tokens [begin, end) as they are laid out for one block.
struct Block {
  int64_t begin, tokens, tile;  // the first one, how many, and how many in a tile
};

// One tile of rows of a part, `first_row` its first row in the matrix, against all tokens of a block.
template <bool dense, class T>
WB_INLINE void multiply_rows(const LinearArgs &args, const Block &block, const MatrixPart &part, int64_t row_tile,
                             int64_t first_row) {
  const int64_t columns = args.matrix.columns, token_bytes = scratch_bytes(args.matrix);
  const int64_t steps = dense ? columns / 2 : columns / columns_per_group;
  const uint8_t *codes = part.codes + row_tile * tile_code_bytes(part.form, columns);
  const uint8_t *scales = part.scales + row_tile * tile_scale_bytes(part.form, columns);
  const int valid = (int)smaller(rows_per_tile, part.rows - row_tile * rows_per_tile);
  for (int64_t token = 0; token < block.tokens; token += block.tile) {
    const int count = (int)smaller(block.tile, block.tokens - token);
    alignas(64) float sums[max_tile<dense>][rows_per_tile];
    multiply_of(part.form, count)(codes, scales, args.scratch + token * token_bytes, steps, sums);
    write_tile<T>(args, part.multiplier, block.begin + token, count, first_row, valid, sums);
  }
}

// First all tokens of the block are laid out, tile by tile, then tiles of rows are multiplied with them.
template <bool dense, class T>
void multiply_block(const LinearArgs &args, int64_t begin, int64_t end, Team &team) {
  const PackedMatrix &matrix = args.matrix;
  const int64_t tokens = end - begin, token_tiles = (tokens + max_tile<dense> - 1) / max_tile<dense>;
  const Block block{begin, tokens, (tokens + token_tiles - 1) / token_tiles};  // even tiles: 8 + 8 tokens, not 12 + 4
  const int64_t token_bytes = scratch_bytes(matrix);
  for (int64_t token; (token = team.claim() * block.tile) < tokens;) {
    const int count = (int)smaller(block.tile, tokens - token);
    if (args.producer.run != nullptr) args.producer.run(args.producer.args, begin + token, begin + token + count);
    lay_out_tile<dense, T>(args, begin + token, count, args.scratch + token * token_bytes);
  }
  team.barrier();
  int64_t row_tiles = 0;
  for (int p = 0; p < matrix.count; p++) row_tiles += tiles_of(matrix.parts[p].rows);
  const int64_t share = claim_size(row_tiles, team);
  for (int64_t first; (first = team.claim(share)) < row_tiles;) {
    const int64_t last = smaller(first + share, row_tiles);
    int64_t start = 0, row = 0;  // tiles and rows of the parts before this one
    for (int p = 0; p < matrix.count; p++) {
      const MatrixPart &part = matrix.parts[p];
      const int64_t until = smaller(last - start, tiles_of(part.rows));
      for (int64_t tile = first > start ? first - start : 0; tile < until; tile++)
        multiply_rows<dense, T>(args, block, part, tile, row + tile * rows_per_tile);
      start += tiles_of(part.rows);
      row += part.rows;
    }
  }
  team.barrier();
}

template <bool dense, class T>
void multiply_all(const LinearArgs &args, Team &team) {
  for (int64_t begin = 0; begin < args.tokens; begin += args.block)
    multiply_block<dense, T>(args, begin, smaller(begin + args.block, args.tokens), team);
}

static void multiply(const LinearArgs &args, Team &team) {
#if defined(__AVX512BF16__)
  if (args.matrix.parts[0].form == Form::bfloat16) return multiply_all<true, bfloat16>(args, team);
#endif
  if (args.dtype == Dtype::float32) return multiply_all<false, float>(args, team);
  multiply_all<false, bfloat16>(args, team);
}

// Row `row` of a part.
template <Form F>
void read_codes(const MatrixPart &part, int64_t row, int64_t columns, float *out) {
  constexpr FormLayout layout = layout_of(F);
  const int n = (int)(row % rows_per_tile);
  const uint8_t *codes = part.codes + row / rows_per_tile * tile_code_bytes(F, columns);
  const uint8_t *scales = part.scales + row / rows_per_tile * tile_scale_bytes(F, columns), *head = scales;
  for (int64_t g = 0; g < columns / columns_per_group; g++) {
    if (g % layout.head_groups == 0) {
      head = scales;
      scales += layout.head_bytes;
    }
    for (int i = 0; i < registers_per_group; i++) {
      const Line line = line_of<F>(head, scales, n, i / 4);
      for (int k = 0; k < 4; k++) {
        const float value = line.scale * (float)(code_at<F>(codes, i, n * 4 + k) - zero_of(F)) + line.minimum;
        *out++ = value * part.multiplier;
      }
    }
    codes += layout.code_bytes;
    scales += layout.scale_bytes;
  }
}

static void read_bfloat16(const MatrixPart &part, int64_t row, int64_t columns, float *out) {
  const uint8_t *at = part.codes + row / rows_per_tile * tile_code_bytes(part.form, columns) + row % rows_per_tile * 4;
  for (int64_t k = 0; k < columns; k++) out[k] = widen(read<bfloat16>(at + k / 2 * 64 + k % 2 * 2));
}

static void read_row(const MatrixPart &part, int64_t row, int64_t columns, float *out) {
  WB_FOR_FORM(part.form, read_codes<form>(part, row, columns, out))
  read_bfloat16(part, row, columns, out);
}

static void read_rows(const ReadRowsArgs &args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) {
    int64_t row = args.ids[i];
    int p = 0;
    while (row >= args.matrix.parts[p].rows) row -= args.matrix.parts[p++].rows;
    read_row(args.matrix.parts[p], row, args.matrix.columns, args.out + i * args.matrix.columns);
  }
}

#if defined(__AVX512BF16__)
extern const LinearKernels linear = {true, multiply, read_rows};
#else
extern const LinearKernels linear = {false, multiply, read_rows};
#endif

}  // namespace weighbridge::WB_ISA
