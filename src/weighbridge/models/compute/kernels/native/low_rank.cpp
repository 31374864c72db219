// Few rows go through each adapter, and its matrices are read once for all of them: decoding waits for those bytes, so
// both lie in the order in which they are read.
#include "low_rank.h"

#include "simd.h"

namespace weighbridge::WB_ISA {

WB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Ranks whose dot products with a row are summed side by side, and the most rows beside them: what registers hold.
constexpr int ranks_at_once = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int down_rows = 4;
#else
constexpr int down_rows = 2;
#endif

constexpr int vectors_per_tile = low_rank_tile / lanes;
#if defined(__AVX512F__)
constexpr int up_rows = 8;
#elif defined(__AVX2__)
constexpr int up_rows = 4;
#else
constexpr int up_rows = 2;
#endif

// Bytes of `up` that a thread claims at a time, about.
constexpr int64_t tiles_per_piece = 16;

// How far ahead weights are asked for: the hardware stops at each page, and begins anew at each adapter.
constexpr int64_t prefetch_bytes = 2048;

WB_INLINE void prefetch(const void *p) { __builtin_prefetch(static_cast<const char *>(p) + prefetch_bytes); }

WB_INLINE float sum_of(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return horizontal_sum(v);
#endif
}

// How many columns are multiplied at a time, what holds them, and the sum of their products.
template <class T>
struct Columns {
  typedef Vector Register;
  static constexpr int count = lanes;
  WB_INLINE Register read(const T *p) { return load(p); }
  WB_INLINE Register read_part(const T *p, int n) { return load_part(p, n); }
  WB_INLINE Vector add(Vector sum, Register a, Register b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct Columns<bfloat16> {
  typedef __m512i Register;
  static constexpr int count = 2 * lanes;
  WB_INLINE Register read(const bfloat16 *p) { return _mm512_loadu_si512(p); }
  WB_INLINE Register read_part(const bfloat16 *p, int n) { return _mm512_maskz_loadu_epi16((1u << n) - 1, p); }
  WB_INLINE Vector add(Vector sum, Register a, Register b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// `whole`, or the first n columns of a register.
template <class T, bool whole>
WB_INLINE typename Columns<T>::Register read_columns(const T *p, int n) {
  return whole ? Columns<T>::read(p) : Columns<T>::read_part(p, n);
}

template <class T, int M, int R, bool whole>
WB_INLINE void add_columns(Vector (&sums)[M * R], const T *const (&x)[M], const T *down, int64_t columns, int64_t k,
                           int n) {
  typename Columns<T>::Register ranks[R];
  WB_UNROLL for (int r = 0; r < R; r++) {
    ranks[r] = read_columns<T, whole>(down + r * columns + k, n);
    if (whole) prefetch(down + r * columns + k);
  }
  WB_UNROLL for (int m = 0; m < M; m++) {
    const typename Columns<T>::Register row = read_columns<T, whole>(x[m] + k, n);
    WB_UNROLL for (int r = 0; r < R; r++) sums[m * R + r] = Columns<T>::add(sums[m * R + r], ranks[r], row);
  }
}

// inner[m][r] = down[r] . x[m]
template <class T, int M, int R>
void multiply_down(const T *const (&x)[M], const T *down, int64_t columns, float *const (&inner)[M]) {
  constexpr int step = Columns<T>::count;
  Vector sums[M * R] = {};
  int64_t k = 0;
  for (; k + step <= columns; k += step) add_columns<T, M, R, true>(sums, x, down, columns, k, step);
  if (k < columns) add_columns<T, M, R, false>(sums, x, down, columns, k, int(columns - k));
  WB_UNROLL for (int m = 0; m < M; m++)
    WB_UNROLL for (int r = 0; r < R; r++) inner[m][r] = sum_of(sums[m * R + r]);
}

template <class T, int M>
WB_INLINE void multiply_ranks(int ranks, const T *const (&x)[M], const T *down, int64_t columns,
                              float *const (&inner)[M]) {
  static_assert(ranks_at_once == 4);
  switch (ranks) {
    case 1: return multiply_down<T, M, 1>(x, down, columns, inner);
    case 2: return multiply_down<T, M, 2>(x, down, columns, inner);
    case 3: return multiply_down<T, M, 3>(x, down, columns, inner);
    default: return multiply_down<T, M, 4>(x, down, columns, inner);
  }
}

// Adds to one tile of M rows of y, its `width` columns from `column` on; all of a tile if `whole`.
template <class T, int M, bool whole>
WB_INLINE void multiply_up(T *const (&y)[M], int64_t column, const T *up, int rank, int width,
                           const float *const (&inner)[M]) {
  Vector sums[M * vectors_per_tile];
  int part[vectors_per_tile];  // how much of each vector there is
  WB_UNROLL for (int v = 0; v < vectors_per_tile; v++) {
    const int left = width - v * lanes;
    part[v] = left < 0 ? 0 : left > lanes ? lanes : left;
  }
  WB_UNROLL for (int m = 0; m < M; m++)
    WB_UNROLL for (int v = 0; v < vectors_per_tile; v++) {
      const T *at = y[m] + column + v * lanes;
      sums[m * vectors_per_tile + v] = whole ? load(at) : load_part(at, part[v]);
    }
  for (int r = 0; r < rank; r++) {
    prefetch(up + r * low_rank_tile);
    WB_UNROLL for (int v = 0; v < vectors_per_tile; v++) {
      const T *at = up + r * (whole ? low_rank_tile : width) + v * lanes;
      const Vector weights = whole ? load(at) : load_part(at, part[v]);
      WB_UNROLL for (int m = 0; m < M; m++) sums[m * vectors_per_tile + v] += weights * inner[m][r];
    }
  }
  WB_UNROLL for (int m = 0; m < M; m++)
    WB_UNROLL for (int v = 0; v < vectors_per_tile; v++) {
      const Vector sum = sums[m * vectors_per_tile + v];
      T *at = y[m] + column + v * lanes;
      if (whole)
        store(at, sum);
      else
        store_part(at, sum, part[v]);
    }
}

// One part of one run of rows.
template <class T>
struct Work {
  const LowRankArgs &args;
  const LowRank &matrices;
  const LowRankPart &part;
  const SlotRun &run;
  const int rank;
  int64_t inner_start;

  Work(const LowRankArgs &all, const SlotRun &rows, int64_t p)
      : args(all), matrices(*all.matrices), part(all.matrices->parts[p]), run(rows),
        rank((int)smaller(all.matrices->parts[p].held[rows.slot], all.matrices->ranks)), inner_start(p * all.matrices->ranks) {}

  float *inner(int position) const {
    return args.inner + position * inner_floats(matrices) + inner_start;
  }
  const T *x(int position) const {
    return static_cast<const T *>(args.x) + args.order[position] * matrices.columns;
  }
  T *y(int position) const {
    return static_cast<T *>(args.y) + args.order[position] * matrices.outputs + part.start;
  }

  // Ranks [first, first + count) of M rows from `position` on.
  template <int M>
  void down(int position, int64_t first, int count) const {
    const T *rows[M];
    float *out[M];
    WB_UNROLL for (int m = 0; m < M; m++) {
      rows[m] = x(position + m);
      out[m] = inner(position + m) + first;
    }
    const T *at = reinterpret_cast<const T *>(part.down) + (run.slot * matrices.ranks + first) * matrices.columns;
    multiply_ranks<T, M>(count, rows, at, matrices.columns, out);
  }

  // Rows [first, last) of the part, tile by tile, of M rows from `position` on.
  template <int M>
  void up(int position, int64_t first, int64_t last) const {
    T *rows[M];
    const float *in[M];
    WB_UNROLL for (int m = 0; m < M; m++) {
      rows[m] = y(position + m);
      in[m] = inner(position + m);
    }
    const T *at = reinterpret_cast<const T *>(part.up) + run.slot * matrices.ranks * part.rows + first * rank;
    int64_t row = first;
    for (; row + low_rank_tile <= last; row += low_rank_tile, at += rank * low_rank_tile)
      multiply_up<T, M, true>(rows, row, at, rank, low_rank_tile, in);
    if (row < last) multiply_up<T, M, false>(rows, row, at, rank, int(last - row), in);
  }

  void down_block(int64_t block) const {
    const int64_t first = block * ranks_at_once;
    if (first >= rank) return;
    const int count = (int)smaller(ranks_at_once, rank - first);
    int position = run.begin;
    for (; position + down_rows <= run.end; position += down_rows) down<down_rows>(position, first, count);
    for (; position < run.end; position++) down<1>(position, first, count);
  }

  void up_piece(int64_t piece) const {
    if (rank <= 0) return;
    const int64_t step = tiles_per_piece * low_rank_tile, first = piece * step, last = smaller(part.rows, first + step);
    int position = run.begin;
    for (; position + up_rows <= run.end; position += up_rows) up<up_rows>(position, first, last);
    for (; position + 2 <= run.end; position += 2) up<2>(position, first, last);
    if (position < run.end) up<1>(position, first, last);
  }
};

static bool adds(const LowRankArgs &args) {
  for (int64_t i = 0; i < args.num_runs; i++)
    for (int p = 0; p < args.matrices->count; p++)
      if (args.matrices->parts[p].held[args.runs[i].slot] > 0) return true;
  return false;
}

// body(run, part, piece) for `pieces[part]` pieces of each part of each run, shared by the team; ends the phase.
template <class Body>
WB_INLINE void share_out(const LowRankArgs &args, const int64_t (&pieces)[max_low_rank_parts], Team &team,
                         const Body &body) {
  int64_t each = 0;
  for (int p = 0; p < args.matrices->count; p++) each += pieces[p];
  const int64_t all = args.num_runs * each, share = claim_size(all, team);
  for (int64_t first; (first = team.claim(share)) < all;)
    for (int64_t at = first; at < smaller(first + share, all); at++) {
      int64_t piece = at % each, p = 0;
      while (piece >= pieces[p]) piece -= pieces[p++];
      body(args.runs[at / each], p, piece);
    }
  team.barrier();
}

template <class T>
void add_all(const LowRankArgs &args, Team &team) {
  const LowRank &matrices = *args.matrices;
  int64_t downs[max_low_rank_parts], ups[max_low_rank_parts];
  for (int p = 0; p < matrices.count; p++) {
    downs[p] = (matrices.ranks + ranks_at_once - 1) / ranks_at_once;
    ups[p] = (matrices.parts[p].rows + tiles_per_piece * low_rank_tile - 1) / (tiles_per_piece * low_rank_tile);
  }
  share_out(args, downs, team, [&](const SlotRun &run, int64_t p, int64_t block) {
    Work<T>(args, run, p).down_block(block);
  });
  share_out(args, ups, team, [&](const SlotRun &run, int64_t p, int64_t piece) {
    Work<T>(args, run, p).up_piece(piece);
  });
}

static void add(const LowRankArgs &args, Team &team) {
  if (!adds(args)) return;  // every thread sees the same
  if (args.matrices->dtype == Dtype::float32) return add_all<float>(args, team);
  add_all<bfloat16>(args, team);
}

extern const LowRankKernels low_rank = {add};

}  // namespace weighbridge::WB_ISA
