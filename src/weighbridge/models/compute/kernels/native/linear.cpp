// Weights are read once for a tile of tokens; tiles of rows are claimed by the threads of a team.
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

// Tokens [begin, end): first all of them are laid out, tile by tile, then tiles of rows are multiplied with them.
template <int bits, class T>
void multiply_block(const LinearArgs &args, int64_t begin, int64_t end, Team &team) {
  const PackedMatrix &matrix = args.matrix;
  const int64_t tokens = end - begin, row_tiles = (matrix.rows + rows_per_tile - 1) / rows_per_tile;
  const int64_t token_tiles = (tokens + max_tile<bits> - 1) / max_tile<bits>;
  const int64_t tile = (tokens + token_tiles - 1) / token_tiles;  // even tiles: 8 + 8 tokens, not 12 + 4
  const int64_t token_bytes = scratch_bytes(bits, matrix.columns);
  const int64_t steps = bits == 16 ? matrix.columns / 2 : matrix.columns / columns_per_group;
  const int64_t code_bytes = rows_per_tile * matrix.columns * bits / 8;  // of one tile of rows
  const int64_t scale_count = bits == 16 ? 0 : steps * (bits == 4 ? 32 : 16);
  for (int64_t token; (token = team.claim() * tile) < tokens;) {
    const int count = (int)smaller(tile, tokens - token);
    if (args.producer.run != nullptr) args.producer.run(args.producer.args, begin + token, begin + token + count);
    lay_out_tile<bits, T>(args, begin + token, count, args.scratch + token * token_bytes);
  }
  team.barrier();
  const int64_t share = claim_size(row_tiles, team);
  for (int64_t first; (first = team.claim(share)) < row_tiles;) {
    const int64_t last = smaller(first + share, row_tiles);
    for (int64_t row_tile = first; row_tile < last; row_tile++) {
      for (int64_t token = 0; token < tokens; token += tile) {
        const int count = (int)smaller(tile, tokens - token);
        alignas(64) float sums[max_tile<bits>][rows_per_tile];
        multiply_of<bits>(count)(matrix.codes + row_tile * code_bytes, matrix.scales + row_tile * scale_count,
                                 args.scratch + token * token_bytes, steps, sums);
        write_tile<T>(args, begin + token, count, row_tile * rows_per_tile, sums);
      }
    }
  }
  team.barrier();
}

template <int bits, class T>
void multiply_all(const LinearArgs &args, Team &team) {
  for (int64_t begin = 0; begin < args.tokens; begin += args.block)
    multiply_block<bits, T>(args, begin, smaller(begin + args.block, args.tokens), team);
}

static void multiply(const LinearArgs &args, Team &team) {
  const bool wide = args.dtype == Dtype::float32;
  if (args.matrix.bits == 4) return wide ? multiply_all<4, float>(args, team) : multiply_all<4, bfloat16>(args, team);
  if (args.matrix.bits == 8) return wide ? multiply_all<8, float>(args, team) : multiply_all<8, bfloat16>(args, team);
#if defined(__AVX512BF16__)
  multiply_all<16, bfloat16>(args, team);
#endif
}

#if defined(__AVX512BF16__)
extern const LinearKernels linear = {true, multiply};
#else
extern const LinearKernels linear = {false, multiply};
#endif

}  // namespace weighbridge::WB_ISA
