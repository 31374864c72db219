// Each group of 32 columns is summed in integers, exactly; a group then costs one conversion and one or two
// fused multiply-adds for 16 outputs of one token. A tile of tokens shares every code that is loaded.
//
// A tile of M rounded tokens lies group by group: codes [8][M][4], scales [M], corrections [M]. So the inner
// loop walks one pointer and every broadcast is at a constant offset from it. The correction restores what the
// unsigned codes leave out: for 4 bits sum(a) * scale as float, to be multiplied by the minimum; for 8 bits
// -128 * sum(a) as int32, which the integer sum starts from.
#include "linear.h"

#include "simd.h"

namespace weighbridge::WB_ISA {

#if defined(__AVX512F__)
constexpr int max_tile = 12;  // 12 integer and 12 float accumulators of 32 registers
#else
constexpr int max_tile = 4;
#endif

constexpr int registers_per_group = 8;

WB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
WB_INLINE T read(const uint8_t *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// ---- activations ----

WB_INLINE int32_t horizontal_max(IntVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t largest = v[0];
  WB_UNROLL for (int i = 1; i < lanes; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

WB_INLINE int32_t horizontal_sum(IntVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  WB_UNROLL for (int i = 0; i < lanes; i++) sum += v[i];
  return sum;
#endif
}

struct Rounded {
  float scale;
  int32_t sum;
  int8_t codes[columns_per_group];
};

// Symmetric rounding of one group to -127..127. A NaN makes the scale NaN, so that it reaches the output.
template <class T>
WB_INLINE Rounded round_group(const T *x) {
  constexpr int registers = columns_per_group / lanes;
  typedef int8_t Codes __attribute__((vector_size(lanes)));
  Vector values[registers];
  IntVector largest = {};
  WB_UNROLL for (int i = 0; i < registers; i++) {
    values[i] = load(x + i * lanes);
    const IntVector magnitude = (IntVector)((Bits)values[i] & 0x7fffffff);  // ordered like the floats
    largest = magnitude > largest ? magnitude : largest;
  }
  const int32_t bits = horizontal_max(largest);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof bits);
  const Vector inverse = splat(magnitude > 0 ? 127.0f / magnitude : 0.0f);
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  Rounded rounded;
  IntVector sum = {};
  WB_UNROLL for (int i = 0; i < registers; i++) {
    const IntVector code = (IntVector)(values[i] * inverse + magic) - (IntVector)magic;
    const Codes narrow = __builtin_convertvector(code, Codes);
    std::memcpy(rounded.codes + i * lanes, &narrow, sizeof narrow);
    sum += code;
  }
  rounded.sum = horizontal_sum(sum);
  rounded.scale = magnitude / 127.0f;
  return rounded;
}

// Rounds a tile of `count` tokens into its place in the scratch memory.
template <class T>
void round_tile(const QuantizedLinearArgs &args, int64_t token, int count, uint8_t *tile) {
  const int64_t columns = args.matrix.columns;
  for (int m = 0; m < count; m++) {
    const T *x = static_cast<const T *>(args.x) + (token + m) * columns;
    uint8_t *group = tile;
    for (int64_t k = 0; k < columns; k += columns_per_group, group += count * bytes_per_rounded_group) {
      const Rounded rounded = round_group(x + k);
      WB_UNROLL for (int i = 0; i < registers_per_group; i++)
        std::memcpy(group + (i * count + m) * 4, rounded.codes + i * 4, 4);
      uint8_t *scales = group + count * columns_per_group;
      std::memcpy(scales + m * 4, &rounded.scale, 4);
      const float weighted_sum = rounded.scale * rounded.sum;
      const int32_t offset = -128 * rounded.sum;
      std::memcpy(scales + (count + m) * 4, args.matrix.bits == 4 ? (const void *)&weighted_sum : &offset, 4);
    }
  }
}

// ---- sums[m][n] = product of token m with row n of one tile of weights, before multiplier and bias ----

#if defined(__AVX512F__)

template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                   float (*sums)[rows_per_tile]) {
  const __m512i low = _mm512_set1_epi8(0x0f);
  __m512 total[M];
  WB_UNROLL for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t *token_scales = tile + M * columns_per_group, *corrections = token_scales + M * 4;
    __m512i acc[M];
    WB_UNROLL for (int m = 0; m < M; m++)
      acc[m] = bits == 4 ? _mm512_setzero_si512() : _mm512_set1_epi32(read<int32_t>(corrections + m * 4));
    if (bits == 4) {
      WB_UNROLL for (int i = 0; i < 4; i++) {
        const __m512i pair = _mm512_loadu_si512(codes + i * 64);
        const __m512i first = _mm512_and_si512(pair, low);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
        WB_UNROLL for (int m = 0; m < M; m++)
          acc[m] = _mm512_dpbusd_epi32(acc[m], first, _mm512_set1_epi32(read<int32_t>(tile + (i * M + m) * 4)));
        WB_UNROLL for (int m = 0; m < M; m++)
          acc[m] = _mm512_dpbusd_epi32(acc[m], second, _mm512_set1_epi32(read<int32_t>(tile + ((i + 4) * M + m) * 4)));
      }
    } else {
      WB_UNROLL for (int i = 0; i < registers_per_group; i++) {
        const __m512i code = _mm512_loadu_si512(codes + i * 64);
        WB_UNROLL for (int m = 0; m < M; m++)
          acc[m] = _mm512_dpbusd_epi32(acc[m], code, _mm512_set1_epi32(read<int32_t>(tile + (i * M + m) * 4)));
      }
    }
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
    WB_UNROLL for (int m = 0; m < M; m++) {
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(read<float>(token_scales + m * 4)));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), both, total[m]);
    }
    if (bits == 4) {
      const __m512 minimum = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + 16)));
      WB_UNROLL for (int m = 0; m < M; m++)
        total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(read<float>(corrections + m * 4)), total[m]);
    }
    codes += bits * 64;
    scales += bits == 4 ? 32 : 16;
    tile += M * bytes_per_rounded_group;
  }
  WB_UNROLL for (int m = 0; m < M; m++) _mm512_storeu_ps(sums[m], total[m]);
}

#elif defined(__AVX2__)

// VPMADDUBSW adds pairs in 16 bits, with saturation. Codes of 4 bits stay far from it: 8 registers of a group sum
// to at most 8 * 2 * 15 * 127 = 30480. An 8-bit code is multiplied as two such halves.
template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                   float (*sums)[rows_per_tile]) {
  const __m256i low = _mm256_set1_epi8(0x0f), ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
  for (int half = 0; half < 2; half++) {
    const uint8_t *code = codes + half * 32, *group = tile;
    const uint16_t *scale_at = scales + half * 8;
    __m256 total[M];
    WB_UNROLL for (int m = 0; m < M; m++) total[m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
      const uint8_t *token_scales = group + M * columns_per_group, *corrections = token_scales + M * 4;
      __m256i small[M], large[M];
      WB_UNROLL for (int m = 0; m < M; m++) small[m] = large[m] = _mm256_setzero_si256();
      WB_UNROLL for (int i = 0; i < bits; i++) {
        const __m256i pair = _mm256_loadu_si256((const __m256i *)(code + i * 64));
        const __m256i first = _mm256_and_si256(pair, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        const int next = bits == 4 ? i + 4 : i;
        WB_UNROLL for (int m = 0; m < M; m++) {
          const __m256i a = _mm256_set1_epi32(read<int32_t>(group + (i * M + m) * 4));
          const __m256i b = _mm256_set1_epi32(read<int32_t>(group + (next * M + m) * 4));
          __m256i &other = bits == 4 ? small[m] : large[m];
          small[m] = _mm256_add_epi16(small[m], _mm256_maddubs_epi16(first, a));
          other = _mm256_add_epi16(other, _mm256_maddubs_epi16(second, b));
        }
      }
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scale_at));
      const __m256 minimum = bits == 4 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scale_at + 16))) : scale;
      WB_UNROLL for (int m = 0; m < M; m++) {
        __m256i sum = _mm256_madd_epi16(small[m], ones);
        if (bits == 8) {
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(large[m], sixteens));
          sum = _mm256_add_epi32(sum, _mm256_set1_epi32(read<int32_t>(corrections + m * 4)));
        }
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(read<float>(token_scales + m * 4)));
        total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, total[m]);
        if (bits == 4)
          total[m] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(read<float>(corrections + m * 4)), total[m]);
      }
      code += bits * 64;
      scale_at += bits == 4 ? 32 : 16;
      group += M * bytes_per_rounded_group;
    }
    WB_UNROLL for (int m = 0; m < M; m++) _mm256_storeu_ps(sums[m] + half * 8, total[m]);
  }
}

#else

WB_INLINE float from_float16(uint16_t half) {
  // The exponent field is rebiased by a multiplication, which also brings subnormals right.
  const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

typedef int16_t Shorts __attribute__((vector_size(16)));

// sums of neighbours: [4 k of row n, 4 k of row n + 1] -> added to sum[n], sum[n + 1]
template <int M, int bits>
void multiply_tile(const uint8_t *codes, const uint16_t *scales, const uint8_t *tile, int64_t groups,
                   float (*sums)[rows_per_tile]) {
  float total[M][rows_per_tile] = {};
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t *token_scales = tile + M * columns_per_group, *corrections = token_scales + M * 4;
    int32_t acc[M][rows_per_tile] = {};
    for (int i = 0; i < registers_per_group; i++) {
      int16_t code[4][rows_per_tile];
      for (int n = 0; n < rows_per_tile; n++)
        for (int k = 0; k < 4; k++)
          code[k][n] = bits == 4 ? (codes[(i & 3) * 64 + n * 4 + k] >> (i & 4)) & 15 : codes[i * 64 + n * 4 + k] - 128;
      for (int m = 0; m < M; m++) {
        const int8_t *a = (const int8_t *)tile + (i * M + m) * 4;
        for (int n = 0; n < rows_per_tile; n++)
          acc[m][n] += code[0][n] * a[0] + code[1][n] * a[1] + code[2][n] * a[2] + code[3][n] * a[3];
      }
    }
    for (int m = 0; m < M; m++) {
      const float token_scale = read<float>(token_scales + m * 4);
      const float weighted_sum = bits == 4 ? read<float>(corrections + m * 4) : 0.0f;
      for (int n = 0; n < rows_per_tile; n++) {
        total[m][n] += acc[m][n] * (from_float16(scales[n]) * token_scale);
        if (bits == 4) total[m][n] += from_float16(scales[16 + n]) * weighted_sum;
      }
    }
    codes += bits * 64;
    scales += bits == 4 ? 32 : 16;
    tile += M * bytes_per_rounded_group;
  }
  std::memcpy(sums, total, sizeof total);
}

#endif

using Multiply = void (*)(const uint8_t *, const uint16_t *, const uint8_t *, int64_t, float (*)[rows_per_tile]);

template <int bits>
Multiply multiplier_of(int count) {
#if defined(__AVX512F__)
  static const Multiply table[max_tile] = {
      multiply_tile<1, bits>, multiply_tile<2, bits>,  multiply_tile<3, bits>,  multiply_tile<4, bits>,
      multiply_tile<5, bits>, multiply_tile<6, bits>,  multiply_tile<7, bits>,  multiply_tile<8, bits>,
      multiply_tile<9, bits>, multiply_tile<10, bits>, multiply_tile<11, bits>, multiply_tile<12, bits>};
#else
  static const Multiply table[max_tile] = {multiply_tile<1, bits>, multiply_tile<2, bits>, multiply_tile<3, bits>,
                                           multiply_tile<4, bits>};
#endif
  return table[count - 1];
}

template <class T>
WB_INLINE void write_tile(const QuantizedLinearArgs &args, int64_t token, int count, int64_t row,
                          float (*sums)[rows_per_tile]) {
  const QuantizedMatrix &matrix = args.matrix;
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

// ---- blocks of tokens ----

// Up to here one thread rounds a block faster than two of them meet at a barrier.
constexpr int64_t round_alone_up_to = 4096;

template <class T>
void multiply_block(const QuantizedLinearArgs &args, int64_t begin, int64_t end) {
  const QuantizedMatrix &matrix = args.matrix;
  const int64_t tokens = end - begin, groups = matrix.columns / columns_per_group;
  const int64_t token_tiles = (tokens + max_tile - 1) / max_tile;
  const int64_t tile = (tokens + token_tiles - 1) / token_tiles;  // even tiles: 8 + 8 tokens, not 12 + 4
  const int64_t token_bytes = groups * bytes_per_rounded_group;
  const int64_t row_tiles = (matrix.rows + rows_per_tile - 1) / rows_per_tile;
  uint8_t *scratch = static_cast<uint8_t *>(args.scratch);
  const bool alone = tokens * matrix.columns <= round_alone_up_to;
  if (alone)
    for (int64_t token = 0; token < tokens; token += tile)
      round_tile<T>(args, begin + token, (int)smaller(tile, tokens - token), scratch + token * token_bytes);
#pragma omp parallel num_threads(args.threads)
  {
    if (!alone) {
#pragma omp for schedule(static)
      for (int64_t token = 0; token < tokens; token += tile)
        round_tile<T>(args, begin + token, (int)smaller(tile, tokens - token), scratch + token * token_bytes);
    }
#pragma omp for schedule(static) nowait
    for (int64_t row_tile = 0; row_tile < row_tiles; row_tile++) {
      const uint8_t *codes = matrix.codes + row_tile * groups * matrix.bits * 64;
      const uint16_t *scales = matrix.scales + row_tile * groups * (matrix.bits == 4 ? 32 : 16);
      for (int64_t token = 0; token < tokens; token += tile) {
        const int count = (int)smaller(tile, tokens - token);
        alignas(64) float sums[max_tile][rows_per_tile];
        const Multiply multiply = matrix.bits == 4 ? multiplier_of<4>(count) : multiplier_of<8>(count);
        multiply(codes, scales, scratch + token * token_bytes, groups, sums);
        write_tile<T>(args, begin + token, count, row_tile * rows_per_tile, sums);
      }
    }
  }
}

static void quantized(const QuantizedLinearArgs &args) {
  for (int64_t begin = 0; begin < args.tokens; begin += args.block) {
    const int64_t end = smaller(begin + args.block, args.tokens);
    if (args.dtype == Dtype::float32)
      multiply_block<float>(args, begin, end);
    else
      multiply_block<bfloat16>(args, begin, end);
  }
}

extern const LinearKernels linear = {quantized};

}  // namespace weighbridge::WB_ISA
