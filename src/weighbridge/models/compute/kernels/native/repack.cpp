#include "repack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace weighbridge {

namespace {

// One group of 32 columns of one row: what all stored types come down to.
struct Group {
  uint8_t codes[columns_per_group];
  uint16_t scale, minimum;  // float16: of the group, or the head's d and dmin
  uint8_t first, second;    // behind a head: the scale, then the minimum or the scale of the second 16 columns
};

struct Source {
  Stored stored;
  Form form;
  int columns, bytes;  // of a block
};

constexpr Source sources[] = {
    {Stored::q4_0, Form::q4_0, 32, 18},     {Stored::q4_1, Form::q4_1, 32, 20},   {Stored::q5_0, Form::q5_0, 32, 22},
    {Stored::q5_1, Form::q5_1, 32, 24},     {Stored::q8_0, Form::q8_0, 32, 34},   {Stored::q3_k, Form::q6_k, 256, 110},
    {Stored::q4_k, Form::q4_k, 256, 144},   {Stored::q5_k, Form::q5_k, 256, 176}, {Stored::q6_k, Form::q6_k, 256, 210},
    {Stored::iq4_nl, Form::iq4_nl, 32, 18}, {Stored::iq4_xs, Form::iq4_xs, 256, 136}, {Stored::mxfp4, Form::mxfp4, 32, 17},
};

uint16_t half_at(const uint8_t *p) { return uint16_t(p[0] | p[1] << 8); }

// Codes j in the low and j + 16 in the high halves.
void split_halves(Group &group, const uint8_t *packed) {
  for (int j = 0; j < 16; j++) {
    group.codes[j] = packed[j] & 15;
    group.codes[j + 16] = packed[j] >> 4;
  }
}

void add_fifth_bits(Group &group, const uint8_t *packed) {
  for (int j = 0; j < 32; j++) group.codes[j] |= uint8_t((packed[j / 8] >> j % 8 & 1) << 4);
}

// The 6-bit scale and minimum `g` of Q4_K and Q5_K.
void unpack_scales(Group &group, const uint8_t *packed, int g) {
  if (g < 4) {
    group.first = packed[g] & 63;
    group.second = packed[g + 4] & 63;
  } else {
    group.first = uint8_t((packed[g + 4] & 15) | packed[g - 4] >> 6 << 4);
    group.second = uint8_t(packed[g + 4] >> 4 | packed[g] >> 6 << 4);
  }
}

// The 6-bit scale `s` of Q3_K, centred on 32.
uint8_t scale_of_q3(const uint8_t *packed, int s) {
  const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
  return uint8_t((low | (packed[8 + s % 4] >> 2 * (s / 4) & 3) << 4) - 32);
}

void read_q3_k(Group &group, const uint8_t *block, int g) {
  const uint8_t *high = block, *low = block + 32 + g / 4 * 32, *scales = block + 96;
  for (int j = 0; j < 32; j++) {
    const int code = (low[j] >> 2 * (g % 4) & 3) - (high[j] >> g & 1 ? 0 : 4);
    group.codes[j] = uint8_t(code + 32);  // where the form has its zero
  }
  group.scale = half_at(block + 108);
  group.first = scale_of_q3(scales, 2 * g);
  group.second = scale_of_q3(scales, 2 * g + 1);
}

void read_q4_k(Group &group, const uint8_t *block, int g) {
  const uint8_t *low = block + 16 + g / 2 * 32;
  for (int j = 0; j < 32; j++) group.codes[j] = low[j] >> 4 * (g % 2) & 15;
  group.scale = half_at(block);
  group.minimum = half_at(block + 2);
  unpack_scales(group, block + 4, g);
}

void read_q5_k(Group &group, const uint8_t *block, int g) {
  const uint8_t *high = block + 16, *low = block + 48 + g / 2 * 32;
  for (int j = 0; j < 32; j++)
    group.codes[j] = uint8_t((low[j] >> 4 * (g % 2) & 15) | (high[j] >> g & 1) << 4);
  group.scale = half_at(block);
  group.minimum = half_at(block + 2);
  unpack_scales(group, block + 4, g);
}

void read_q6_k(Group &group, const uint8_t *block, int g) {
  const uint8_t *low = block + g / 4 * 64 + g % 2 * 32, *high = block + 128 + g / 4 * 32;
  for (int j = 0; j < 32; j++)
    group.codes[j] = uint8_t((low[j] >> 4 * (g % 4 / 2) & 15) | (high[j] >> 2 * (g % 4) & 3) << 4);
  group.scale = half_at(block + 208);
  group.first = block[192 + 2 * g];
  group.second = block[192 + 2 * g + 1];
}

void read_iq4_xs(Group &group, const uint8_t *block, int g) {
  split_halves(group, block + 8 + g * 16);
  group.scale = half_at(block);
  group.first = uint8_t(((block[4 + g / 2] >> 4 * (g % 2) & 15) | (half_at(block + 2) >> 2 * g & 3) << 4) - 32);
}

// A power of two as float16: 2^(exponent - 128), half of what OCP's E8M0 says, for values twice as large. Beyond what
// float16 holds it is infinite, and far below the smallest weight that matters, zero.
uint16_t float16_of_e8m0(int exponent) {
  const int power = exponent - 128;
  if (power > 15) return 0x7c00;
  if (power >= -14) return uint16_t((power + 15) << 10);
  return power >= -24 ? uint16_t(1 << (power + 24)) : uint16_t(0);
}

// Group `g` of a block.
void read_group(Group &group, Stored stored, const uint8_t *block, int g) {
  switch (stored) {
    case Stored::q3_k: return read_q3_k(group, block, g);
    case Stored::q4_k: return read_q4_k(group, block, g);
    case Stored::q5_k: return read_q5_k(group, block, g);
    case Stored::q6_k: return read_q6_k(group, block, g);
    case Stored::iq4_xs: return read_iq4_xs(group, block, g);
    case Stored::mxfp4:
      group.scale = float16_of_e8m0(block[0]);
      return split_halves(group, block + 1);
    default: break;
  }
  group.scale = half_at(block);
  const bool minimum = stored == Stored::q4_1 || stored == Stored::q5_1;
  if (minimum) group.minimum = half_at(block + 2);
  const uint8_t *rest = block + (minimum ? 4 : 2);
  if (stored == Stored::q8_0) {
    for (int j = 0; j < 32; j++) group.codes[j] = rest[j] ^ 0x80;  // the same as adding 128
    return;
  }
  const bool five = stored == Stored::q5_0 || stored == Stored::q5_1;
  split_halves(group, rest + (five ? 4 : 0));
  if (five) add_fifth_bits(group, rest);
}

// Codes of row `n` into the registers of its tile; these are zero before.
void place_codes(uint8_t *codes, const Group &group, int n, int code_bytes) {
  uint8_t *at = codes + n * 4;
  if (code_bytes == 512) {
    for (int i = 0; i < 8; i++) std::memcpy(at + i * 64, group.codes + i * 4, 4);
    return;
  }
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 4; k++)
      at[i * 64 + k] = uint8_t((group.codes[i * 4 + k] & 15) | (group.codes[16 + i * 4 + k] & 15) << 4);
  if (code_bytes == 320)
    for (int i = 0; i < 8; i++)
      for (int k = 0; k < 4; k++) at[256 + k] |= uint8_t((group.codes[i * 4 + k] >> 4) << i);
  if (code_bytes == 384)
    for (int i = 0; i < 8; i++)
      for (int k = 0; k < 4; k++) at[256 + i / 4 * 64 + k] |= uint8_t((group.codes[i * 4 + k] >> 4) << 2 * (i % 4));
}

bool is_finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

void place_half(uint8_t *at, int n, uint16_t half) { std::memcpy(at + n * 2, &half, 2); }

// One row of a tile. Returns whether its scales are finite.
bool repack_row(const RepackArgs &args, const Source &source, const uint8_t *row, int n, uint8_t *codes,
                uint8_t *scales) {
  const FormLayout layout = layout_of(args.form);
  const int64_t groups = args.columns / columns_per_group, block_groups = source.columns / columns_per_group;
  bool finite = true;
  for (int64_t g = 0; g < groups; g++) {
    Group group{};
    read_group(group, source.stored, row + g / block_groups * source.bytes, int(g % block_groups));
    finite = finite && is_finite(group.scale) && is_finite(group.minimum);
    place_codes(codes, group, n, layout.code_bytes);
    if (g % layout.head_groups == 0 && layout.head_bytes > 0) {
      place_half(scales, n, group.scale);
      if (layout.head_bytes == 64) place_half(scales + 32, n, group.minimum);
      scales += layout.head_bytes;
    }
    if (layout.head_bytes == 0) {
      place_half(scales, n, group.scale);
      if (layout.scale_bytes == 64) place_half(scales + 32, n, group.minimum);
    } else {
      scales[n] = group.first;
      if (layout.scale_bytes == 32) scales[16 + n] = group.second;
    }
    codes += layout.code_bytes;
    scales += layout.scale_bytes;
  }
  return finite;
}

const Source *find(int stored, Form form) {
  for (const Source &source : sources)
    if (static_cast<int>(source.stored) == stored && source.form == form) return &source;
  return nullptr;
}

}  // namespace

RepackArgs repack_args(Memory codes, Memory scales, int number, int stored, Memory blocks, const int64_t *order,
                       int64_t rows, int64_t columns) {
  const Form form = static_cast<Form>(number);
  const Source *source = is_form(number) ? find(stored, form) : nullptr;
  if (source == nullptr) throw std::invalid_argument("blocks of this type are not kept in this form");
  if (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX || columns % source->columns != 0)
    throw std::invalid_argument("these are no sizes of a matrix in blocks");
  RepackArgs args{};
  args.codes = take<uint8_t>(codes, tiles_of(rows) * tile_code_bytes(form, columns), "the codes of a packed matrix");
  args.scales = take<uint8_t>(scales, tiles_of(rows) * tile_scale_bytes(form, columns), "the scales of a packed matrix");
  args.form = form;
  args.stored = source->stored;
  args.order = order;
  args.rows = rows;
  args.columns = columns;
  args.row_bytes = columns / source->columns * source->bytes;
  args.blocks = take<const uint8_t>(blocks, blocks.second / args.row_bytes * args.row_bytes, "the blocks of a matrix");
  const int64_t stored_rows = blocks.second / args.row_bytes;
  for (int64_t i = 0; i < rows; i++)
    if (order[i] < 0 || order[i] >= stored_rows) throw std::invalid_argument("a row is outside the stored matrix");
  return args;
}

bool repack(const RepackArgs &args, int threads) {
  const Source &source = *find(static_cast<int>(args.stored), args.form);
  const int64_t code_bytes = tile_code_bytes(args.form, args.columns);
  const int64_t scale_bytes = tile_scale_bytes(args.form, args.columns);
  std::atomic<bool> finite{true};
  parallel_rows(tiles_of(args.rows), args.rows * args.columns, threads, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      uint8_t *codes = args.codes + tile * code_bytes, *scales = args.scales + tile * scale_bytes;
      std::memset(codes, 0, code_bytes);
      std::memset(scales, 0, scale_bytes);
      const int64_t first = tile * rows_per_tile, last = std::min(first + rows_per_tile, args.rows);
      for (int64_t row = first; row < last; row++)
        if (!repack_row(args, source, args.blocks + args.order[row] * args.row_bytes, int(row - first), codes, scales))
          finite = false;
    }
  });
  return finite;
}

}  // namespace weighbridge
