// The register-blocked product that both halves of attention share.
//
// It runs over "units": a float, an int8, or two bfloat16 along the summed dimension. A unit of the left side is
// broadcast against registers of units of the right side.
#pragma once

#include "attention.h"
#include "simd.h"

namespace weighbridge::WB_ISA {
namespace {

constexpr int register_rows = 6;  // times 2 or 4 registers of accumulators
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int wide = 4;
#else
constexpr int wide = 2;
#endif

struct Float32 {
  using Stored = float;
  using Left = float;
  using Right = Bits;
  static constexpr int per_unit = 1, unit_bytes = 4;
  static constexpr bool coarse = false, scaled = false;
  WB_INLINE Bits right(const char *p) { return load_bits(p); }
  WB_INLINE Vector multiply_add(Vector sum, const float *left, Bits right) {
    return splat(*left) * (Vector)right + sum;
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  using Stored = bfloat16;
  using Left = bfloat16;
  using Right = Bits;
  static constexpr int per_unit = 2, unit_bytes = 4;
  static constexpr bool coarse = true, scaled = false;
  WB_INLINE Bits right(const char *p) { return load_bits(p); }
  WB_INLINE Vector multiply_add(Vector sum, const bfloat16 *left, Bits right) {
    int32_t pair;
    std::memcpy(&pair, left, sizeof pair);
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)right);
  }
};
#else
struct Bfloat16 {
  using Stored = bfloat16;
  using Left = float;
  using Right = Bits;
  static constexpr int per_unit = 2, unit_bytes = 4;
  static constexpr bool coarse = true, scaled = false;
  WB_INLINE Bits right(const char *p) { return load_bits(p); }
  WB_INLINE Vector multiply_add(Vector sum, const float *left, Bits right) {
    sum = splat(left[0]) * (Vector)(right << 16) + sum;
    return splat(left[1]) * (Vector)(right & 0xffff0000u) + sum;
  }
};
#endif

// Codes of one byte, which become floats on their way into a register. Scales are put on scores and weights.
struct Int8 {
  using Stored = int8_t;
  using Left = float;
  using Right = Vector;
  static constexpr int per_unit = 1, unit_bytes = 1;
  static constexpr bool coarse = false, scaled = true;
  WB_INLINE Vector right(const char *p) { return load((const int8_t *)p); }
  WB_INLINE Vector multiply_add(Vector sum, const float *left, Vector right) { return splat(*left) * right + sum; }
};

// Consecutive rows of units: a block of keys or of values.
struct Panel {
  const char *units;
  int count;
  const char *soon = nullptr;  // memory to fetch meanwhile (see `fetches`): twice the bytes of each unit row
};

// With few rows the memory is the limit, and blocks are too scattered for the processor to guess the next one.
constexpr int few_rows = 5;

// The left side of the first product: queries, [tiles of 6 rows][units][6 rows]. All offsets in a tile are known to
// the compiler, so one address register serves all rows. `tile` is the distance to the next 6 rows.
template <class E>
struct PackedQueries {
  static constexpr int row = E::per_unit, unit = register_rows * E::per_unit;
  static constexpr bool fetches = true;  // each unit row brings twice its bytes of `soon` nearer
};

// The left side of the second product: weights, [rows][group_keys floats, of which bfloat16 weights use half].
template <class E>
struct RowWeights {
  static constexpr int row = group_keys * sizeof(float) / sizeof(typename E::Left), unit = E::per_unit;
  static constexpr bool fetches = false;
};

// C[rows, columns registers] = correction * C + A B. Without `correction`, C = A B.
// A: left values. B: `panels` on top of each other, unit row stride b_stride.
template <class E, class A, int rows, int columns>
WB_INLINE void multiply_tile(const typename E::Left *a, const Panel *panels, int num_panels, int64_t b_offset,
                             int64_t b_stride, float *c, int64_t c_stride, const float *correction) {
  // Few rows leave few independent sums, too few to hide the latency of a multiply-add: keep two sets.
  constexpr int sets = rows * columns <= 4 ? 2 : 1;
  constexpr int soon_bytes = 2 * columns * lanes * E::unit_bytes;
  Vector sums[sets][rows][columns] = {};
  if (correction != nullptr) {
    WB_UNROLL for (int r = 0; r < rows; r++)
      WB_UNROLL for (int v = 0; v < columns; v++)
        sums[0][r][v] = load(c + r * c_stride + v * lanes) * splat(correction[r]);
  }
  for (int p = 0; p < num_panels; p++) {
    const char *b = panels[p].units + b_offset * E::unit_bytes;
    const int count = panels[p].count;
    // Without a wish, the same line again and again, which costs next to nothing.
    const char *soon = panels[p].soon == nullptr ? b : panels[p].soon;
    const int soon_step = panels[p].soon == nullptr ? 0 : soon_bytes;
    const auto step = [&](Vector(&set)[rows][columns]) __attribute__((always_inline)) {
      typename E::Right right[columns];
      WB_UNROLL for (int v = 0; v < columns; v++) {
        right[v] = E::right(b + v * lanes * E::unit_bytes);
        WB_KEEP_IN_REGISTER(right[v]);
      }
      WB_UNROLL for (int r = 0; r < rows; r++)
        WB_UNROLL for (int v = 0; v < columns; v++) set[r][v] = E::multiply_add(set[r][v], a + r * A::row, right[v]);
      a += A::unit;
      b += b_stride * E::unit_bytes;
      if (A::fetches && rows <= few_rows) {
        WB_UNROLL for (int i = 0; i < soon_bytes; i += 64) __builtin_prefetch(soon + i, 0, 2);  // into L2
        soon += soon_step;
      }
    };
    int k = 0;
    for (; k + sets <= count; k += sets)
      WB_UNROLL for (int s = 0; s < sets; s++) step(sums[s]);
    if (k < count) step(sums[0]);
  }
  WB_UNROLL for (int r = 0; r < rows; r++)
    WB_UNROLL for (int v = 0; v < columns; v++)
      store(c + r * c_stride + v * lanes, sets == 2 ? sums[0][r][v] + sums[sets - 1][r][v] : sums[0][r][v]);
}

template <class E, class A, int columns>
void multiply(int rows, const typename E::Left *a, int64_t a_tile, const Panel *panels, int num_panels,
              int64_t b_offset, int64_t b_stride, float *c, int64_t c_stride, const float *correction) {
#define WB_TILE(n) \
  multiply_tile<E, A, n, columns>(a, panels, num_panels, b_offset, b_stride, c, c_stride, correction)
  for (; rows >= register_rows; rows -= register_rows) {
    WB_TILE(register_rows);
    a += a_tile;
    c += register_rows * c_stride;
    if (correction != nullptr) correction += register_rows;
  }
  switch (rows) {
    case 1: WB_TILE(1); break;
    case 2: WB_TILE(2); break;
    case 3: WB_TILE(3); break;
    case 4: WB_TILE(4); break;
    case 5: WB_TILE(5); break;
  }
#undef WB_TILE
}

WB_INLINE void convert(float *to, const float *from) { *to = *from; }
WB_INLINE void convert(float *to, const bfloat16 *from) { *to = widen(*from); }
WB_INLINE void convert(bfloat16 *to, const bfloat16 *from) { *to = *from; }
WB_INLINE void convert(bfloat16 *to, const float *from) { store_part(to, load_part(from, 1), 1); }

// One query into its place in a tile, see PackedQueries.
template <class E, class T>
WB_INLINE void pack_queries(typename E::Left *to, const T *from, int n) {
  for (int i = 0; i < n; i += E::per_unit)
    WB_UNROLL for (int u = 0; u < E::per_unit; u++) convert(to + i * register_rows + u, from + i + u);
}

}  // namespace
}  // namespace weighbridge::WB_ISA
