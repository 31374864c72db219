// How few-bit weights lie in memory: one form for each kind of codes that files come with.
#pragma once

#include <cstdint>

namespace weighbridge {

// Named after the types of GGUF that they hold without loss; numbers are what Python and files of experts say.
enum class Form : int {
  q4_1 = 4,      // scale * code + minimum
  q8_0 = 8,      // scale * (code - 128)
  bfloat16 = 16,
  q4_0 = 40,     // scale * (code - 8)
  iq4_nl = 41,   // scale * table[code]
  iq4_xs = 42,
  mxfp4 = 43,
  q4_k = 44,     // (d * scale) * code - (dmin * minimum)
  q5_0 = 50,     // scale * (code - 16)
  q5_1 = 51,
  q5_k = 54,
  q6_k = 64,     // (d * scale) * (code - 32), a scale for 16 columns
};

// Counts the changes of what is below. Python packs by it, and does not use kernels that were built for another.
constexpr int packed_layout = 2;

constexpr int rows_per_tile = 16, columns_per_group = 32;

// Weights [rows, columns] are cut into tiles of 16 rows, and columns into groups of 32. A register of 64 bytes holds 4
// neighbouring codes of row 0, then of row 1 ...; register i of a group has columns 4 i to 4 i + 3.
//
//   codes     [tiles][groups] of one of
//               8 bits   [8] registers
//               4 bits   [4]: register i in the low halves, i + 4 in the high ones
//               5 bits   the same, then one register whose bit i is the fifth of register i
//               6 bits   the same, then two: bits 2 (i % 4) and 2 (i % 4) + 1 of the one at i / 4
//   scales    [tiles] of
//               0, 1, NL, MX   [groups] of float16 [16], then the minimums alike where there are some
//               K, XS          [groups / 8] of a head, float16 [16] (d, then dmin where there is one), and 8 times
//                              bytes [16]: scales, then minimums or the scales of the second 16 columns
//
// bfloat16 has neither groups nor scales: [tiles][columns / 2][16 rows][2 columns]. Rows beyond the last are zero.
struct FormLayout {
  int code_bytes;   // of a group
  int head_bytes;   // of scales, once for `head_groups` groups
  int scale_bytes;  // of a group
  int head_groups;
};

static constexpr FormLayout layout_of(Form form) {
  switch (form) {
    case Form::q4_0: case Form::iq4_nl: case Form::mxfp4: return {256, 0, 32, 1};
    case Form::q4_1: return {256, 0, 64, 1};
    case Form::q5_0: return {320, 0, 32, 1};
    case Form::q5_1: return {320, 0, 64, 1};
    case Form::q8_0: return {512, 0, 32, 1};
    case Form::q4_k: return {256, 64, 32, 8};
    case Form::q5_k: return {320, 64, 32, 8};
    case Form::q6_k: return {384, 32, 32, 8};
    case Form::iq4_xs: return {256, 32, 16, 8};
    default: return {1024, 0, 0, 1};  // bfloat16
  }
}

static constexpr bool is_form(int number) {
  switch (static_cast<Form>(number)) {
    case Form::q4_0: case Form::q4_1: case Form::q5_0: case Form::q5_1: case Form::q8_0: case Form::q4_k:
    case Form::q5_k: case Form::q6_k: case Form::iq4_nl: case Form::iq4_xs: case Form::mxfp4: case Form::bfloat16:
      return true;
  }
  return false;
}

// Columns that a row of this form has a multiple of.
static constexpr int64_t column_step(Form form) {
  return form == Form::bfloat16 ? 2 : columns_per_group * layout_of(form).head_groups;
}

static constexpr int64_t tiles_of(int64_t rows) { return (rows + rows_per_tile - 1) / rows_per_tile; }

// Bytes of codes of one tile.
static constexpr int64_t tile_code_bytes(Form form, int64_t columns) {
  return form == Form::bfloat16 ? columns * 2 * rows_per_tile : columns / columns_per_group * layout_of(form).code_bytes;
}

// Bytes of scales of one tile.
static constexpr int64_t tile_scale_bytes(Form form, int64_t columns) {
  const FormLayout layout = layout_of(form);
  const int64_t groups = columns / columns_per_group;
  return groups * layout.scale_bytes + groups / layout.head_groups * layout.head_bytes;
}

}  // namespace weighbridge
