// Weights are read once for a tile of tokens; tiles of rows are shared out over the threads.
#include "linear.h"

#include "linear_tile.h"
#include "simd.h"

namespace weighbridge::WB_ISA {

// Tokens of the largest tile, bounded by the accumulators that registers hold.
#if defined(__AVX512F__)
template <int bits>
constexpr int max_tile = bits == 16 ? 24 : 12;
#else
template <int bits>
constexpr int max_tile = 4;
#endif

// Up to here one thread lays a block out faster than two of them meet at a barrier.
constexpr int64_t lay_out_alone_up_to = 4096;

WB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

using Multiply = void (*)(const uint8_t *, const uint16_t *, const uint8_t *, int64_t, float (*)[rows_per_tile]);

template <int bits, int M = max_tile<bits>>
Multiply multiply_of(int count) {
  if constexpr (M > 1)
    if (count < M) return multiply_of<bits, M - 1>(count);
  return multiply_tile<M, bits>;
}

template <int bits, class T>
WB_INLINE void lay_out_tile(const LinearArgs &args, int64_t token, int count, uint8_t *tile) {
  if constexpr (bits == 16)
    interleave_tile(args, token, count, tile);
  else
    round_tile<T>(args, token, count, tile);
}

template <class T>
WB_INLINE void write_tile(const LinearArgs &args, int64_t token, int count, int64_t row,
                          float (*sums)[rows_per_tile]) {
  const PackedMatrix &matrix = args.matrix;
  const int valid = (int)smaller(rows_per_tile, matrix.rows - row);
  for (int m = 0; m < count; m++) {
    T *out = static_cast<T *>(args.out) + (token + m) * matrix.rows + row;
    for (int n = 0; n < valid; n += lanes) {
      Vector y = load(sums[m] + n) * matrix.multiplier;
      if (matrix.bias != nullptr) y += load(matrix.bias + row + n);
      if (n + lanes <= valid)
        store(out + n, y);
      else
        store_part(out + n, y, valid - n);
    }
  }
}

template <int bits, class T>
void multiply_block(const LinearArgs &args, int64_t begin, int64_t end) {
  const PackedMatrix &matrix = args.matrix;
  const int64_t tokens = end - begin, row_tiles = (matrix.rows + rows_per_tile - 1) / rows_per_tile;
  const int64_t token_tiles = (tokens + max_tile<bits> - 1) / max_tile<bits>;
  const int64_t tile = (tokens + token_tiles - 1) / token_tiles;  // even tiles: 8 + 8 tokens, not 12 + 4
  const int64_t token_bytes = scratch_bytes(bits, matrix.columns);
  const int64_t steps = bits == 16 ? matrix.columns / 2 : matrix.columns / columns_per_group;
  const int64_t code_bytes = rows_per_tile * matrix.columns * bits / 8;  // of one tile of rows
  const int64_t scale_count = bits == 16 ? 0 : steps * (bits == 4 ? 32 : 16);
  const bool alone = tokens * matrix.columns <= lay_out_alone_up_to;
  if (alone)
    for (int64_t token = 0; token < tokens; token += tile)
      lay_out_tile<bits, T>(args, begin + token, (int)smaller(tile, tokens - token),
                            args.scratch + token * token_bytes);
#pragma omp parallel num_threads(args.threads)
  {
    if (!alone) {
#pragma omp for schedule(static)
      for (int64_t token = 0; token < tokens; token += tile)
        lay_out_tile<bits, T>(args, begin + token, (int)smaller(tile, tokens - token),
                              args.scratch + token * token_bytes);
    }
#pragma omp for schedule(static) nowait
    for (int64_t row_tile = 0; row_tile < row_tiles; row_tile++) {
      for (int64_t token = 0; token < tokens; token += tile) {
        const int count = (int)smaller(tile, tokens - token);
        alignas(64) float sums[max_tile<bits>][rows_per_tile];
        multiply_of<bits>(count)(matrix.codes + row_tile * code_bytes, matrix.scales + row_tile * scale_count,
                                 args.scratch + token * token_bytes, steps, sums);
        write_tile<T>(args, begin + token, count, row_tile * rows_per_tile, sums);
      }
    }
  }
}

template <int bits, class T>
void multiply_all(const LinearArgs &args) {
  for (int64_t begin = 0; begin < args.tokens; begin += args.block)
    multiply_block<bits, T>(args, begin, smaller(begin + args.block, args.tokens));
}

static void multiply(const LinearArgs &args) {
  const bool wide = args.dtype == Dtype::float32;
  if (args.matrix.bits == 4) return wide ? multiply_all<4, float>(args) : multiply_all<4, bfloat16>(args);
  if (args.matrix.bits == 8) return wide ? multiply_all<8, float>(args) : multiply_all<8, bfloat16>(args);
#if defined(__AVX512BF16__)
  multiply_all<16, bfloat16>(args);
#endif
}

#if defined(__AVX512BF16__)
extern const LinearKernels linear = {true, multiply};
#else
extern const LinearKernels linear = {false, multiply};
#endif

}  // namespace weighbridge::WB_ISA
