// One pass over the keys with a running maximum and sum (online softmax), 128 keys at a time:
// scores = Q K^T, weights = 2^(scores - maximum), O = O * correction + weights V.
//
// Both products are the same register-blocked loop over "units" of 32 bits: a float, or two bfloat16 along the
// summed dimension. A unit of the left side is broadcast against registers of units of the right side.
#include "attention.h"

#include "kv_layout.h"
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
  static constexpr int per_unit = 1;
  static constexpr bool coarse = false;
  WB_INLINE Vector multiply_add(Vector sum, const float *left, Bits right) {
    return splat(*left) * (Vector)right + sum;
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  using Stored = bfloat16;
  using Left = bfloat16;
  static constexpr int per_unit = 2;
  static constexpr bool coarse = true;
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
  static constexpr int per_unit = 2;
  static constexpr bool coarse = true;
  WB_INLINE Vector multiply_add(Vector sum, const float *left, Bits right) {
    sum = splat(left[0]) * (Vector)(right << 16) + sum;
    return splat(left[1]) * (Vector)(right & 0xffff0000u) + sum;
  }
};
#endif

// Consecutive rows of units: a block of keys or of values.
struct Panel {
  const uint32_t *units;
  int count;
  const char *soon = nullptr;  // memory to fetch meanwhile: for each unit row, twice the bytes of the row
};

// With few rows the memory is the limit, and blocks are too scattered for the processor to guess the next one.
constexpr int few_rows = 5;

// The left side of the first product: queries, [tiles of 6 rows][units][6 rows]. All offsets in a tile are known to
// the compiler, so one address register serves all rows. `tile` is the distance to the next 6 rows.
template <class E>
struct PackedQueries {
  static constexpr int row = E::per_unit, unit = register_rows * E::per_unit;
};

// The left side of the second product: weights, [rows][group_keys floats, of which bfloat16 weights use half].
template <class E>
struct RowWeights {
  static constexpr int row = group_keys * sizeof(float) / sizeof(typename E::Left), unit = E::per_unit;
};

// C[rows, columns registers] = correction * C + A B. Without `correction`, C = A B.
// A: left values. B: `panels` on top of each other, unit row stride b_stride.
template <class E, class A, int rows, int columns>
WB_INLINE void multiply_tile(const typename E::Left *a, const Panel *panels, int num_panels, int64_t b_offset,
                             int64_t b_stride, float *c, int64_t c_stride, const float *correction) {
  // Few rows leave few independent sums, too few to hide the latency of a multiply-add: keep two sets.
  constexpr int sets = rows * columns <= 4 ? 2 : 1;
  Vector sums[sets][rows][columns] = {};
  if (correction != nullptr) {
    WB_UNROLL for (int r = 0; r < rows; r++)
      WB_UNROLL for (int v = 0; v < columns; v++)
        sums[0][r][v] = load(c + r * c_stride + v * lanes) * splat(correction[r]);
  }
  for (int p = 0; p < num_panels; p++) {
    const uint32_t *b = panels[p].units + b_offset;
    const int count = panels[p].count;
    // Without a wish, the same line again and again, which costs next to nothing.
    const char *soon = panels[p].soon == nullptr ? (const char *)b : panels[p].soon;
    const int soon_step = panels[p].soon == nullptr ? 0 : 2 * columns * (int)sizeof(Vector);
    const auto step = [&](Vector(&set)[rows][columns]) __attribute__((always_inline)) {
      Bits right[columns];
      WB_UNROLL for (int v = 0; v < columns; v++) {
        right[v] = load_bits(b + v * lanes);
        WB_KEEP_IN_REGISTER(right[v]);
      }
      WB_UNROLL for (int r = 0; r < rows; r++)
        WB_UNROLL for (int v = 0; v < columns; v++) set[r][v] = E::multiply_add(set[r][v], a + r * A::row, right[v]);
      a += A::unit;
      b += b_stride;
      if (rows <= few_rows) {
        constexpr int bytes = 2 * columns * (int)sizeof(Vector);
        WB_UNROLL for (int i = 0; i < bytes; i += 64) __builtin_prefetch(soon + i, 0, 2);  // into L2
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

WB_INLINE void pack_queries(float *to, const float *from, int n) {
  for (int i = 0; i < n; i++) to[i * register_rows] = from[i];
}
WB_INLINE void pack_queries(bfloat16 *to, const bfloat16 *from, int n) {
  for (int i = 0; i < n; i += 2) std::memcpy(to + i * register_rows, from + i, 2 * sizeof *to);
}
WB_INLINE void pack_queries(float *to, const bfloat16 *from, int n) {
  for (int i = 0; i < n; i += 2) {
    to[i * register_rows] = widen(from[i]);
    to[i * register_rows + 1] = widen(from[i + 1]);
  }
}

// A thread's working memory. `weights` overwrites the scores in place, row by row.
template <class E>
struct Scratch {
  typename E::Left *queries;  // packed, see PackedQueries
  float *output;              // [tile_rows, padded]
  float *scores;              // [tile_rows, group_keys]
  uint32_t *last_pair;        // [padded]: the last value of an odd count, without its neighbour
  float maxima[tile_rows], sums[tile_rows], corrections[tile_rows];
  int32_t visible_begin[tile_rows], visible_end[tile_rows];
};

WB_INLINE int64_t query_bytes(const AttentionArgs &args) {
  return (int64_t(tile_rows) * args.head_dim * sizeof(float) + 63) / 64 * 64;
}

int64_t scratch_bytes(const AttentionArgs &args) {
  const int64_t padded = KvLayout{args.kv_heads, args.head_dim, args.block_size}.padded();
  return query_bytes(args) + (int64_t(tile_rows) * (padded + group_keys) + padded) * sizeof(float);
}

int64_t partial_floats(const AttentionArgs &args) {
  return int64_t(tile_rows) * (2 + KvLayout{args.kv_heads, args.head_dim, args.block_size}.padded());
}

// Weights of one row from its scores, in place; updates the maximum and the sum. `count` keys, a multiple of
// the register width; those outside [begin, end) are masked.
template <class E>
WB_INLINE float softmax_row(float *scores, int count, int begin, int end, float scale, float &maximum_seen,
                            float &sum) {
  const float lowest = -__builtin_inff();
  for (int i = 0; i < begin; i++) scores[i] = lowest;
  for (int i = end; i < count; i++) scores[i] = lowest;
  Vector top = splat(maximum_seen);
  for (int i = 0; i < count; i += lanes) top = maximum(top, load(scores + i));
  const float highest = horizontal_max(top);
  const float shift = highest == lowest ? 0.0f : highest * scale;
  const Vector vector_scale = splat(scale), vector_shift = splat(shift);
  Vector total = {};
  typename E::Left *weights = (typename E::Left *)scores;
  for (int i = 0; i < count; i += lanes) {
    const Vector weight = exp2_vector<E::coarse>(load(scores + i) * vector_scale - vector_shift);
    total = total + weight;
    store(weights + i, weight);
  }
  const Vector correction = exp2_vector<E::coarse>(splat(maximum_seen * scale - shift));
  sum = sum * correction[0] + horizontal_sum(total);
  maximum_seen = highest;
  return correction[0];
}

// Scores, weights and output of `count` keys that start at position `base`, at a block's start. `next`: the
// block behind them, or null.
template <class E>
void attend_group(const KvLayout &kv, const typename E::Stored *const *chunks,
                  const typename E::Stored *next, Scratch<E> &scratch, int rows, int base, int count,
                  float scale) {
  const int block = kv.block_size, key_units = kv.head_dim / E::per_unit;
  const int num_blocks = (count + block - 1) / block;
  const int step = 2 * lanes <= block ? 2 * lanes : lanes;
  const int query_tile = register_rows * kv.head_dim;
  int computed = 0;  // keys with a score: count, rounded up to `step`
  for (int b = 0; b < num_blocks; b++) {
    const char *soon = (const char *)(b + 1 < num_blocks ? chunks[b + 1] : next);
    for (int first = 0; first < block && b * block + first < count; first += step, computed += step) {
      float *scores = scratch.scores + b * block + first;
      const Panel keys{(const uint32_t *)chunks[b], key_units, soon};
      if (soon != nullptr) soon += 2 * step * sizeof(uint32_t) * key_units;
      if (step == lanes)
        multiply<E, PackedQueries<E>, 1>(rows, scratch.queries, query_tile, &keys, 1, first, block, scores,
                                         group_keys, nullptr);
      else
        multiply<E, PackedQueries<E>, 2>(rows, scratch.queries, query_tile, &keys, 1, first, block, scores,
                                         group_keys, nullptr);
    }
  }
  for (int r = 0; r < rows; r++) {
    int begin = scratch.visible_begin[r] - base, end = scratch.visible_end[r] - base;
    begin = begin < 0 ? 0 : begin > computed ? computed : begin;
    end = end > count ? count : end < begin ? begin : end;
    scratch.corrections[r] = softmax_row<E>(scratch.scores + r * group_keys, computed, begin, end, scale,
                                            scratch.maxima[r], scratch.sums[r]);
  }
  Panel values[group_keys / 16 + 1];
  for (int b = 0; b < num_blocks; b++) {
    const int in_block = count - b * block < block ? count - b * block : block;
    values[b] = Panel{(const uint32_t *)(chunks[b] + kv.key_elements()), in_block / E::per_unit};
  }
  int num_panels = num_blocks;
  const int padded = (int)kv.padded();
  if (count % E::per_unit != 0) {  // an odd count: the neighbour was never written, and NaN * 0 is NaN
    const Panel &last = values[num_blocks - 1];
    for (int i = 0; i < padded; i++) scratch.last_pair[i] = last.units[last.count * padded + i] & 0xffffu;
    values[num_panels++] = Panel{scratch.last_pair, 1};
  }
  const typename E::Left *weights = (const typename E::Left *)scratch.scores;
  constexpr int weight_tile = register_rows * RowWeights<E>::row;
  int column = 0;
  for (; column + wide * lanes <= padded; column += wide * lanes)
    multiply<E, RowWeights<E>, wide>(rows, weights, weight_tile, values, num_panels, column, padded,
                                     scratch.output + column, padded, scratch.corrections);
  for (; column < padded; column += lanes)
    multiply<E, RowWeights<E>, 1>(rows, weights, weight_tile, values, num_panels, column, padded,
                                  scratch.output + column, padded, scratch.corrections);
}

template <class E>
void run_item(const AttentionArgs &args, const AttentionItem &item, const AttentionItem *following, float *partials,
              char *memory) {
  using Stored = typename E::Stored;
  const KvLayout kv{args.kv_heads, args.head_dim, args.block_size};
  const int dim = args.head_dim, padded = (int)kv.padded(), rows = item.row_end - item.row_begin;
  const int heads = args.num_heads / args.kv_heads;
  const int first_query = args.query_starts[item.sequence];
  const int num_queries = args.query_starts[item.sequence + 1] - first_query;
  const int first_position = args.context_lens[item.sequence] - num_queries;

  Scratch<E> scratch;
  scratch.queries = (typename E::Left *)memory;
  scratch.output = (float *)(memory + query_bytes(args));
  scratch.scores = scratch.output + tile_rows * padded;
  scratch.last_pair = (uint32_t *)(scratch.scores + tile_rows * group_keys);
  if (item.partial >= 0) {  // build the result where it is to stay
    partials += item.partial * partial_floats(args);
    scratch.output = partials + 2 * tile_rows;
  }
  for (int i = 0; i < rows * padded; i += lanes) store(scratch.output + i, Vector{});
  for (int r = 0; r < rows; r++) {
    const int query = (item.row_begin + r) / heads, head = (item.row_begin + r) % heads;
    const int position = first_position + query;
    pack_queries(scratch.queries + r / register_rows * register_rows * dim + r % register_rows * E::per_unit,
                 (const Stored *)args.queries + (first_query + query) * args.query_stride +
                     (item.kv_head * heads + head) * dim,
                 dim);
    scratch.maxima[r] = -__builtin_inff();
    scratch.sums[r] = 0;
    scratch.visible_begin[r] = args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
    scratch.visible_end[r] = position + 1;
  }
  const float scale = args.scale * 1.4426950408889634f;
  const Stored *chunks[group_keys / 16];
  const auto chunk_at = [&](const AttentionItem &of, int position) __attribute__((always_inline)) {
    const int32_t *table = args.block_tables + of.sequence * args.max_blocks;
    return (const Stored *)args.kv + kv.chunk(table[position / kv.block_size], of.kv_head);
  };
  for (int base = item.key_begin; base < item.key_end; base += group_keys) {
    const int count = item.key_end - base < group_keys ? item.key_end - base : group_keys;
    for (int b = 0; b * kv.block_size < count; b++) chunks[b] = chunk_at(item, base + b * kv.block_size);
    const Stored *next = base + group_keys < item.key_end ? chunk_at(item, base + group_keys)
                         : following != nullptr           ? chunk_at(*following, following->key_begin)
                                                          : nullptr;
    attend_group<E>(kv, chunks, next, scratch, rows, base, count, scale);
  }
  if (item.partial >= 0) {
    for (int r = 0; r < rows; r++) {
      partials[r] = scratch.maxima[r] * scale;
      partials[tile_rows + r] = scratch.sums[r];
    }
    return;
  }
  for (int r = 0; r < rows; r++) {
    const int query = (item.row_begin + r) / heads, head = (item.row_begin + r) % heads;
    Stored *out = (Stored *)args.out +
                  (int64_t(first_query + query) * args.num_heads + item.kv_head * heads + head) * dim;
    const Vector inverse = splat(1.0f / scratch.sums[r]);
    int d = 0;
    for (; d + lanes <= dim; d += lanes) store(out + d, load(scratch.output + r * padded + d) * inverse);
    if (d < dim) store_part(out + d, load(scratch.output + r * padded + d) * inverse, dim - d);
  }
}

template <class T>
void merge_rows(const AttentionArgs &args, const AttentionMerge &merge, const float *partials) {
  const int64_t size = partial_floats(args);
  const int dim = args.head_dim, padded = (int)KvLayout{args.kv_heads, dim, args.block_size}.padded();
  const int heads = args.num_heads / args.kv_heads;
  partials += merge.first_partial * size;
  for (int r = 0; r < merge.row_end - merge.row_begin; r++) {
    const int query = (merge.row_begin + r) / heads, head = (merge.row_begin + r) % heads;
    T *out = (T *)args.out + (int64_t(args.query_starts[merge.sequence] + query) * args.num_heads +
                              merge.kv_head * heads + head) * dim;
    float highest = -__builtin_inff();
    for (int p = 0; p < merge.parts; p++) highest = partials[p * size + r] > highest ? partials[p * size + r] : highest;
    Vector total = {};
    for (int p = 0; p < merge.parts; p++)
      total = exp2_vector<false>(splat(partials[p * size + r] - highest)) * splat(partials[p * size + tile_rows + r]) +
              total;
    for (int d = 0; d < dim; d += lanes) {
      Vector sum = {};
      for (int p = 0; p < merge.parts; p++)
        sum = exp2_vector<false>(splat(partials[p * size + r] - highest)) *
                  load(partials + p * size + 2 * tile_rows + r * padded + d) +
              sum;
      sum = sum / total;
      if (dim - d >= lanes)
        store(out + d, sum);
      else
        store_part(out + d, sum, dim - d);
    }
  }
}

void run(const AttentionArgs &args, const AttentionItem &item, const AttentionItem *following, float *partials,
         char *scratch) {
  (args.dtype == Dtype::bfloat16 ? run_item<Bfloat16> : run_item<Float32>)(args, item, following, partials, scratch);
}

void merge(const AttentionArgs &args, const AttentionMerge &merge, const float *partials) {
  (args.dtype == Dtype::bfloat16 ? merge_rows<bfloat16> : merge_rows<float>)(args, merge, partials);
}

}  // namespace

const AttentionKernels attention = {partial_floats, scratch_bytes, run, merge};

}  // namespace weighbridge::WB_ISA
