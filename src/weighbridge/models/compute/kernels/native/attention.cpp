// One pass over the keys with a running maximum and sum (online softmax), 128 keys at a time:
// scores = Q K^T, weights = 2^(scores - maximum), output = output * correction + weights V.
// Scores may go through a soft cap, and a sink may take its share of the weights.
#include "attention.h"

#include "attention_tile.h"
#include "kv_layout.h"
#include "simd.h"

namespace weighbridge::WB_ISA {
namespace {

constexpr float log2_e = 1.4426950408889634f;  // the weights are powers of two

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

WB_INLINE KvLayout layout_of(const AttentionArgs &args) {
  return {args.kv_heads, args.head_dim, args.block_size, args.kv_layers, args.kv_dtype};
}

WB_INLINE int64_t query_bytes(const AttentionArgs &args) {
  return (int64_t(tile_rows) * args.head_dim * sizeof(float) + 63) / 64 * 64;
}

int64_t scratch_bytes(const AttentionArgs &args) {
  const int64_t padded = layout_of(args).padded();
  return query_bytes(args) + (int64_t(tile_rows) * (padded + group_keys) + padded) * sizeof(float);
}

int64_t partial_floats(const AttentionArgs &args) {
  return int64_t(tile_rows) * (2 + layout_of(args).padded());
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

// Keys [position, position + count) of an item; `position` is at a block's start.
template <class E>
struct KeyGroup {
  const typename E::Stored *chunks[group_keys / 16];
  const typename E::Stored *next;  // the block that will be read after these, or null
  int position, count, blocks;
};

// Scores of all rows against a group. Returns the number of keys with a score: count, rounded up to registers.
template <class E>
int score_group(const KvLayout &kv, const KeyGroup<E> &group, const Scratch<E> &scratch, int rows) {
  const int block = kv.block_size, units = kv.head_dim / E::per_unit, tile = register_rows * kv.head_dim;
  const int step = 2 * lanes <= block ? 2 * lanes : lanes;
  int scored = 0;
  for (int b = 0; b < group.blocks; b++) {
    const char *soon = (const char *)(b + 1 < group.blocks ? group.chunks[b + 1] : group.next);
    for (int first = 0; first < block && b * block + first < group.count; first += step, scored += step) {
      float *scores = scratch.scores + b * block + first;
      const Panel keys{(const char *)group.chunks[b], units, soon};
      if (soon != nullptr) soon += 2 * step * E::unit_bytes * units;
      if (step == lanes)
        multiply<E, PackedQueries<E>, 1>(rows, scratch.queries, tile, &keys, 1, first, block, scores, group_keys,
                                         nullptr);
      else
        multiply<E, PackedQueries<E>, 2>(rows, scratch.queries, tile, &keys, 1, first, block, scores, group_keys,
                                         nullptr);
    }
  }
  return scored;
}

// output = correction * output + weights V.
template <class E>
void add_values(const KvLayout &kv, const KeyGroup<E> &group, const Scratch<E> &scratch, int rows) {
  const int block = kv.block_size, padded = (int)kv.padded();
  Panel panels[group_keys / 16 + 1];
  for (int b = 0; b < group.blocks; b++) {
    const int in_block = group.count - b * block < block ? group.count - b * block : block;
    panels[b] = Panel{(const char *)(group.chunks[b] + kv.key_elements()), in_block / E::per_unit};
  }
  int num_panels = group.blocks;
  if (group.count % E::per_unit != 0) {  // an odd count: the neighbour was never written, and NaN * 0 is NaN
    const Panel &last = panels[group.blocks - 1];
    std::memcpy(scratch.last_pair, last.units + last.count * padded * sizeof(uint32_t), padded * sizeof(uint32_t));
    for (int i = 0; i < padded; i++) scratch.last_pair[i] &= 0xffffu;
    panels[num_panels++] = Panel{(const char *)scratch.last_pair, 1};
  }
  const auto *weights = (const typename E::Left *)scratch.scores;
  constexpr int tile = register_rows * RowWeights<E>::row;
  int column = 0;
  for (; column + wide * lanes <= padded; column += wide * lanes)
    multiply<E, RowWeights<E>, wide>(rows, weights, tile, panels, num_panels, column, padded, scratch.output + column,
                                     padded, scratch.corrections);
  for (; column < padded; column += lanes)
    multiply<E, RowWeights<E>, 1>(rows, weights, tile, panels, num_panels, column, padded, scratch.output + column,
                                  padded, scratch.corrections);
}

// Weights of all rows from their scores, in place.
template <class E>
void weigh_group(const KeyGroup<E> &group, Scratch<E> &scratch, int rows, int scored, float scale) {
  for (int r = 0; r < rows; r++) {
    int begin = scratch.visible_begin[r] - group.position, end = scratch.visible_end[r] - group.position;
    begin = begin < 0 ? 0 : begin > scored ? scored : begin;
    end = end > group.count ? group.count : end < begin ? begin : end;
    scratch.corrections[r] = softmax_row<E>(scratch.scores + r * group_keys, scored, begin, end, scale,
                                            scratch.maxima[r], scratch.sums[r]);
  }
}

// The scales of a group's keys and values, side by side; behind the last key there may be anything.
struct GroupScales {
  alignas(64) float keys[group_keys];
  alignas(64) float values[group_keys];

  GroupScales(const KvLayout &kv, const KeyGroup<Int8> &group) {
    const int64_t bytes = kv.block_size * sizeof(float);
    for (int b = 0; b < group.blocks; b++) {
      const int8_t *scales = group.chunks[b] + kv.part_elements();
      std::memcpy(keys + b * kv.block_size, scales, bytes);
      std::memcpy(values + b * kv.block_size, scales + bytes, bytes);
    }
  }
};

WB_INLINE void scale_rows(float *rows_at, int rows, const float *scales, int count) {
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < count; i += lanes)
      store(rows_at + r * group_keys + i, load(rows_at + r * group_keys + i) * load(scales + i));
}

// What the exponents of weights are of their scores: behind a soft cap, scores have their scale already.
WB_INLINE float exponent_scale(const AttentionArgs &args) { return args.softcap > 0 ? log2_e : args.scale * log2_e; }

// cap * tanh(scale * score / cap), in place, where tanh(u) = 1 - 2 / (2^(2 u log2 e) + 1).
WB_INLINE void cap_rows(float *rows_at, int rows, int count, float scale, float cap) {
  const Vector inner = splat(2.0f * log2_e * scale / cap), outer = splat(cap), one = splat(1.0f);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < count; i += lanes) {
      float *at = rows_at + r * group_keys + i;
      store(at, outer - (outer + outer) / (exp2_vector<false>(load(at) * inner) + one));
    }
}

template <class E>
void attend_group(const AttentionArgs &args, const KvLayout &kv, const KeyGroup<E> &group, Scratch<E> &scratch,
                  int rows) {
  const int scored = score_group(kv, group, scratch, rows);
  const float scale = exponent_scale(args);
  const auto cap = [&]() __attribute__((always_inline)) {
    if (args.softcap > 0) cap_rows(scratch.scores, rows, scored, args.scale, args.softcap);
  };
  if constexpr (E::scaled) {
    const GroupScales scales(kv, group);
    scale_rows(scratch.scores, rows, scales.keys, scored);
    cap();
    weigh_group(group, scratch, rows, scored, scale);
    scale_rows(scratch.scores, rows, scales.values, scored);
  } else {
    cap();
    weigh_group(group, scratch, rows, scored, scale);
  }
  add_values(kv, group, scratch, rows);
}

// Where a row of an item is: its query's row in the batch, its query head, its position in the sequence.
struct Row {
  int64_t token;
  int head, position;
};

WB_INLINE Row row_of(const AttentionArgs &args, int sequence, int kv_head, int index) {
  const int group = args.num_heads / args.kv_heads, query = index / group;
  const int first = args.query_starts[sequence], count = args.query_starts[sequence + 1] - first;
  return {first + query, kv_head * group + index % group, args.context_lens[sequence] - count + query};
}

template <class E, class T>
void start_rows(const AttentionArgs &args, const AttentionItem &item, Scratch<E> &scratch, int padded) {
  const int rows = item.row_end - item.row_begin, dim = args.head_dim;
  for (int i = 0; i < rows * padded; i += lanes) store(scratch.output + i, Vector{});
  for (int r = 0; r < rows; r++) {
    const Row row = row_of(args, item.sequence, item.kv_head, item.row_begin + r);
    pack_queries<E>(scratch.queries + r / register_rows * register_rows * dim + r % register_rows * E::per_unit,
                 (const T *)args.queries + row.token * args.query_stride + row.head * dim, dim);
    // A sink counts once, like a key that was seen before all others; of parts, where they are put together.
    const bool sinks = args.sinks != nullptr && item.partial < 0;
    scratch.maxima[r] = sinks ? args.sinks[row.head] * log2_e / exponent_scale(args) : -__builtin_inff();
    scratch.sums[r] = sinks ? 1.0f : 0.0f;
    scratch.visible_begin[r] =
        args.window > 0 && row.position >= args.window ? row.position - args.window + 1 : 0;
    scratch.visible_end[r] = row.position + 1;
  }
}

template <class E, class T>
void finish_rows(const AttentionArgs &args, const AttentionItem &item, const Scratch<E> &scratch, int padded) {
  const int dim = args.head_dim;
  for (int r = 0; r < item.row_end - item.row_begin; r++) {
    const Row row = row_of(args, item.sequence, item.kv_head, item.row_begin + r);
    auto *out = (T *)args.out + (row.token * args.num_heads + row.head) * dim;
    const Vector inverse = splat(1.0f / scratch.sums[r]);
    int d = 0;
    for (; d + lanes <= dim; d += lanes) store(out + d, load(scratch.output + r * padded + d) * inverse);
    if (d < dim) store_part(out + d, load(scratch.output + r * padded + d) * inverse, dim - d);
  }
}

template <class E, class T>
void run_item(const AttentionArgs &args, const AttentionItem &item, const AttentionItem *following, float *partials,
              char *memory) {
  using Stored = typename E::Stored;
  const KvLayout kv = layout_of(args);
  const int padded = (int)kv.padded(), rows = item.row_end - item.row_begin;
  Scratch<E> scratch;
  scratch.queries = (typename E::Left *)memory;
  scratch.output = (float *)(memory + query_bytes(args));
  scratch.scores = scratch.output + tile_rows * padded;
  scratch.last_pair = (uint32_t *)(scratch.scores + tile_rows * group_keys);
  if (item.partial >= 0) {  // build the result where it is to stay
    partials += item.partial * partial_floats(args);
    scratch.output = partials + 2 * tile_rows;
  }
  start_rows<E, T>(args, item, scratch, padded);
  const auto chunk_at = [&](const AttentionItem &of, int position) __attribute__((always_inline)) {
    const int32_t *table = args.block_tables + of.sequence * args.max_blocks;
    return (const Stored *)args.kv + kv.chunk(table[position / kv.block_size], of.kv_head);
  };
  for (int base = item.key_begin; base < item.key_end; base += group_keys) {
    KeyGroup<E> group;
    group.position = base;
    group.count = item.key_end - base < group_keys ? item.key_end - base : group_keys;
    group.blocks = (group.count + kv.block_size - 1) / kv.block_size;
    for (int b = 0; b < group.blocks; b++) group.chunks[b] = chunk_at(item, base + b * kv.block_size);
    group.next = base + group_keys < item.key_end ? chunk_at(item, base + group_keys)
                 : following != nullptr           ? chunk_at(*following, following->key_begin)
                                                  : nullptr;
    attend_group(args, kv, group, scratch, rows);
  }
  if (item.partial < 0) {
    finish_rows<E, T>(args, item, scratch, padded);
    return;
  }
  for (int r = 0; r < rows; r++) {
    partials[r] = scratch.maxima[r] * exponent_scale(args);
    partials[tile_rows + r] = scratch.sums[r];
  }
}

template <class T>
void merge_rows(const AttentionArgs &args, const AttentionMerge &merge, const float *partials) {
  const int64_t size = partial_floats(args);
  const int dim = args.head_dim, padded = (int)layout_of(args).padded();
  partials += merge.first_partial * size;
  for (int r = 0; r < merge.row_end - merge.row_begin; r++) {
    const Row row = row_of(args, merge.sequence, merge.kv_head, merge.row_begin + r);
    T *out = (T *)args.out + (row.token * args.num_heads + row.head) * dim;
    const float sink = args.sinks != nullptr ? args.sinks[row.head] * log2_e : -__builtin_inff();
    float highest = sink;
    for (int p = 0; p < merge.parts; p++) highest = partials[p * size + r] > highest ? partials[p * size + r] : highest;
    Vector total = exp2_vector<false>(splat(sink - highest));
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
  const bool half = args.dtype == Dtype::bfloat16;
  const auto by = half ? args.kv_dtype == Dtype::int8       ? run_item<Int8, bfloat16>
                         : args.kv_dtype == Dtype::bfloat16 ? run_item<Bfloat16, bfloat16>
                                                            : run_item<Float32, bfloat16>
                  : args.kv_dtype == Dtype::int8     ? run_item<Int8, float>
                  : args.kv_dtype == Dtype::bfloat16 ? run_item<Bfloat16, float>
                                                     : run_item<Float32, float>;
  by(args, item, following, partials, scratch);
}

void merge(const AttentionArgs &args, const AttentionMerge &merge, const float *partials) {
  (args.dtype == Dtype::bfloat16 ? merge_rows<bfloat16> : merge_rows<float>)(args, merge, partials);
}

}  // namespace

const AttentionKernels attention = {partial_floats, scratch_bytes, run, merge};

}  // namespace weighbridge::WB_ISA
