#include "elementwise.h"

#include "kv_layout.h"
#include "simd.h"

namespace weighbridge::WB_ISA {
namespace {

constexpr float log2e = 1.4426950408889634f;

// 1 / sqrt is left to the scalar unit: once per row.
WB_INLINE float inverse_rms(float sum_of_squares, int64_t width, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / (float)width + eps);
}

// residual += x, and the sum of squares of the result.
template <class T>
WB_INLINE float add_and_square(float *residual, const T *x, int64_t width) {
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    WB_UNROLL for (int u = 0; u < 4; u++) {
      Vector v = load(residual + i + u * lanes);
      if (x != nullptr) {
        v = v + load(x + i + u * lanes);
        store(residual + i + u * lanes, v);
      }
      sums[u] = v * v + sums[u];
    }
  }
  for (; i < width; i += lanes) {
    const int n = width - i < lanes ? (int)(width - i) : lanes;
    Vector v = load_part(residual + i, n);
    if (x != nullptr) {
      v = v + load_part(x + i, n);
      store_part(residual + i, v, n);
    }
    sums[0] = v * v + sums[0];
  }
  return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void norm_rows(const NormArgs &args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  for (int64_t t = begin; t < end; t++) {
    float *residual = args.residual + t * width;
    const T *x = args.x == nullptr ? nullptr : (const T *)args.x + t * width;
    T *out = (T *)args.out + t * width;
    const Vector scale = splat(inverse_rms(add_and_square(residual, x, width), width, args.eps));
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) store(out + i, load(residual + i) * scale * load(args.weight + i));
    if (i < width) {
      const int n = (int)(width - i);
      store_part(out + i, load_part(residual + i, n) * scale * load_part(args.weight + i, n), n);
    }
  }
}

// One head: normalised if `norm`, rotated if `cosines`; from T to float. `half` elements and their partners.
template <class T>
WB_INLINE void rotate(float *out, const T *x, int half, const float *norm, float eps, const float *cosines) {
  float scale = 1.0f;
  if (norm != nullptr) {
    Vector sums = {};
    for (int i = 0; i < 2 * half; i += lanes) {
      const int n = 2 * half - i < lanes ? 2 * half - i : lanes;
      const Vector v = n == lanes ? load(x + i) : load_part(x + i, n);
      sums = v * v + sums;
    }
    scale = inverse_rms(horizontal_sum(sums), 2 * half, eps);
  }
  for (int i = 0; i < half; i += lanes) {
    const int n = half - i < lanes ? half - i : lanes;
    const bool full = n == lanes;
    Vector a = full ? load(x + i) : load_part(x + i, n);
    Vector b = full ? load(x + half + i) : load_part(x + half + i, n);
    if (norm != nullptr) {
      a = a * splat(scale) * (full ? load(norm + i) : load_part(norm + i, n));
      b = b * splat(scale) * (full ? load(norm + half + i) : load_part(norm + half + i, n));
    }
    if (cosines != nullptr) {
      const Vector c = full ? load(cosines + i) : load_part(cosines + i, n);
      const Vector s = full ? load(cosines + half + i) : load_part(cosines + half + i, n);
      const Vector rotated = a * c - b * s;
      b = b * c + a * s;
      a = rotated;
    }
    if (full) {
      store(out + i, a);
      store(out + half + i, b);
    } else {
      store_part(out + i, a, n);
      store_part(out + half + i, b, n);
    }
  }
}

constexpr int largest_head = 1024;  // checked by the caller

template <class T>
WB_INLINE void narrow(T *out, const float *x, int width) {
  for (int i = 0; i < width; i += lanes) {
    const int n = width - i < lanes ? width - i : lanes;
    if (n == lanes)
      store(out + i, load(x + i));
    else
      store_part(out + i, load_part(x + i, n), n);
  }
}

void write_token(float *chunk, const KvLayout &kv, int offset, const float *key, const float *value) {
  for (int d = 0; d < kv.head_dim; d++) chunk[int64_t(d) * kv.block_size + offset] = key[d];
  std::memcpy(chunk + kv.key_elements() + offset * kv.padded(), value, kv.head_dim * sizeof(float));
}

void write_token(bfloat16 *chunk, const KvLayout &kv, int offset, const float *key, const float *value) {
  alignas(64) bfloat16 narrowed[largest_head];
  narrow(narrowed, key, kv.head_dim);
  for (int d = 0; d < kv.head_dim; d += 2)
    std::memcpy(chunk + int64_t(d) * kv.block_size + 2 * offset, narrowed + d, sizeof(uint32_t));
  narrow(narrowed, value, kv.head_dim);
  bfloat16 *values = chunk + kv.key_elements() + (offset / 2) * 2 * kv.padded() + offset % 2;
  for (int d = 0; d < kv.head_dim; d++) values[2 * d] = narrowed[d];
}

// Rounds a head to codes of -127 to 127 and returns their scale; one that is not finite has no finite scale.
WB_INLINE float round_to_int8(int8_t *codes, const float *x, int width) {
  Vector top = {}, bad = {};
  for (int i = 0; i < width; i += lanes) {
    const int n = width - i < lanes ? width - i : lanes;
    const Vector v = n == lanes ? load(x + i) : load_part(x + i, n);
    top = maximum(top, maximum(v, -v));
    bad = v * splat(0.0f) + bad;
  }
  const float largest = horizontal_max(top) + horizontal_sum(bad);
  const Vector inverse = splat(largest > 0 ? 127.0f / largest : 0.0f);
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  for (int i = 0; i < width; i += lanes) {
    const int n = width - i < lanes ? width - i : lanes;
    const Bits rounded = (Bits)((n == lanes ? load(x + i) : load_part(x + i, n)) * inverse + magic);
    for (int l = 0; l < n; l++) codes[i + l] = (int8_t)(uint8_t)rounded[l];
  }
  return largest / 127.0f;
}

void write_token(int8_t *chunk, const KvLayout &kv, int offset, const float *key, const float *value) {
  alignas(64) int8_t codes[largest_head];
  float scale = round_to_int8(codes, key, kv.head_dim);
  int8_t *scales = chunk + kv.part_elements() + offset * sizeof(float);
  std::memcpy(scales, &scale, sizeof scale);
  for (int d = 0; d < kv.head_dim; d++) chunk[int64_t(d) * kv.block_size + offset] = codes[d];
  scale = round_to_int8(chunk + kv.key_elements() + offset * kv.padded(), value, kv.head_dim);
  std::memcpy(scales + kv.block_size * sizeof(float), &scale, sizeof scale);
}

template <class T>
WB_INLINE void widen_row(float *out, const T *x, int width) {
  for (int i = 0; i < width; i += lanes) {
    const int n = width - i < lanes ? width - i : lanes;
    if (n == lanes)
      store(out + i, load(x + i));
    else
      store_part(out + i, load_part(x + i, n), n);
  }
}

template <class T, class Cached>
void rope_rows(const RopeArgs &args, int64_t begin, int64_t end) {
  const int dim = args.head_dim, half = dim / 2;
  const KvLayout kv{args.kv_heads, dim, args.block_size, args.kv_layers, args.kv_dtype};
  const int64_t stride = int64_t(args.num_heads + 2 * args.kv_heads) * dim;
  alignas(64) float rotated[largest_head];
  alignas(64) float value[largest_head];
  for (int64_t t = begin; t < end; t++) {
    T *queries = (T *)args.qkv + t * stride;
    const T *keys = queries + args.num_heads * dim, *values = keys + args.kv_heads * dim;
    const float *cosines = args.cos_sin == nullptr ? nullptr : args.cos_sin + int64_t(args.positions[t]) * dim;
    if (args.q_norm != nullptr || cosines != nullptr) {
      for (int h = 0; h < args.num_heads; h++) {
        rotate(rotated, queries + h * dim, half, args.q_norm, args.eps, cosines);
        narrow(queries + h * dim, rotated, dim);
      }
    }
    const int64_t block = args.slots[t] / args.block_size;
    const int offset = args.slots[t] % args.block_size;
    for (int h = 0; h < args.kv_heads; h++) {
      rotate(rotated, keys + h * dim, half, args.k_norm, args.eps, cosines);
      widen_row(value, values + h * dim, dim);
      write_token((Cached *)args.kv + kv.chunk(block, h), kv, offset, rotated, value);
    }
  }
}

template <bool coarse>
WB_INLINE Vector silu_times(Vector gate, Vector up) {
  return gate / (exp2_vector<coarse>(gate * splat(-log2e)) + 1.0f) * up;
}

template <class T, bool coarse>
void silu_rows(const SiluArgs &args, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  for (int64_t t = begin; t < end; t++) {
    T *out = (T *)args.out + t * width;
    const T *gate = (const T *)args.gate_up + 2 * t * width, *up = gate + width;
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) store(out + i, silu_times<coarse>(load(gate + i), load(up + i)));
    if (i < width) {
      const int n = (int)(width - i);
      store_part(out + i, silu_times<coarse>(load_part(gate + i, n), load_part(up + i, n)), n);
    }
  }
}

template <class Out, class Table>
void gather(const GatherArgs &args, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; t++) {
    Out *out = (Out *)args.out + t * args.width;
    const Table *row = (const Table *)args.table + args.rows[t] * args.width;
    int64_t i = 0;
    for (; i + lanes <= args.width; i += lanes) store(out + i, load(row + i));
    if (i < args.width) store_part(out + i, load_part(row + i, (int)(args.width - i)), (int)(args.width - i));
  }
}

WB_INLINE float value_of(float x) { return x; }
WB_INLINE float value_of(bfloat16 x) { return widen(x); }

// The largest value of each stretch, then the first place in the first stretch that holds the largest of all.
// NaN is never the largest.
template <class T>
int32_t argmax_row(const T *x, int64_t width) {
  constexpr int64_t stretch = 64 * lanes;
  const float lowest = -__builtin_inff();
  float largest = lowest;
  int64_t first = 0;
  for (int64_t begin = 0; begin < width; begin += stretch) {
    const int64_t end = begin + stretch < width ? begin + stretch : width;
    Vector best[4] = {splat(lowest), splat(lowest), splat(lowest), splat(lowest)};
    int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes)
      WB_UNROLL for (int u = 0; u < 4; u++) best[u] = maximum(load(x + i + u * lanes), best[u]);
    float top = horizontal_max(maximum(maximum(best[0], best[1]), maximum(best[2], best[3])));
    for (; i < end; i++) top = value_of(x[i]) > top ? value_of(x[i]) : top;
    if (top > largest) {
      largest = top;
      first = begin;
    }
  }
  for (int64_t i = first; i < width; i++)
    if (value_of(x[i]) == largest) return (int32_t)i;
  return 0;
}

template <class T>
void argmax_rows(const ArgmaxArgs &args, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; t++) args.out[t] = argmax_row((const T *)args.logits + t * args.width, args.width);
}

void norm(const NormArgs &args, int64_t begin, int64_t end) {
  (args.dtype == Dtype::bfloat16 ? norm_rows<bfloat16> : norm_rows<float>)(args, begin, end);
}

void rope_and_write(const RopeArgs &args, int64_t begin, int64_t end) {
  const bool half = args.dtype == Dtype::bfloat16;
  const auto by = half ? args.kv_dtype == Dtype::int8       ? rope_rows<bfloat16, int8_t>
                         : args.kv_dtype == Dtype::bfloat16 ? rope_rows<bfloat16, bfloat16>
                                                            : rope_rows<bfloat16, float>
                  : args.kv_dtype == Dtype::int8     ? rope_rows<float, int8_t>
                  : args.kv_dtype == Dtype::bfloat16 ? rope_rows<float, bfloat16>
                                                     : rope_rows<float, float>;
  by(args, begin, end);
}

void silu_mul(const SiluArgs &args, int64_t begin, int64_t end) {
  (args.dtype == Dtype::bfloat16 ? silu_rows<bfloat16, true> : silu_rows<float, false>)(args, begin, end);
}

void gather_rows(const GatherArgs &args, int64_t begin, int64_t end) {
  const bool from_half = args.table_dtype == Dtype::bfloat16;
  if (args.out_dtype == Dtype::bfloat16)
    (from_half ? gather<bfloat16, bfloat16> : gather<bfloat16, float>)(args, begin, end);
  else
    (from_half ? gather<float, bfloat16> : gather<float, float>)(args, begin, end);
}

void argmax(const ArgmaxArgs &args, int64_t begin, int64_t end) {
  (args.dtype == Dtype::bfloat16 ? argmax_rows<bfloat16> : argmax_rows<float>)(args, begin, end);
}

}  // namespace

const ElementwiseKernels elementwise = {norm, rope_and_write, silu_mul, gather_rows, argmax};

}  // namespace weighbridge::WB_ISA
