// What the codes of a form stand for, and how they come out of memory. See linear_forms.h for the layout.
#pragma once

#include "linear_forms.h"
#include "simd.h"

namespace weighbridge::WB_ISA {

template <class T>
WB_INLINE T read(const uint8_t *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

static constexpr bool has_table(Form form) {
  return form == Form::iq4_nl || form == Form::iq4_xs || form == Form::mxfp4;
}

static constexpr bool has_minimum(Form form) {
  return form == Form::q4_1 || form == Form::q5_1 || form == Form::q4_k || form == Form::q5_k;
}

static constexpr bool has_head(Form form) { return layout_of(form).head_groups > 1; }

// Bits above the four that every form but q8_0 has in halves of bytes.
static constexpr int high_bits(Form form) {
  switch (form) {
    case Form::q5_0: case Form::q5_1: case Form::q5_k: return 1;
    case Form::q6_k: return 2;
    default: return 0;
  }
}

// The code that stands for zero; 128 where the kernels see table + 128.
static constexpr int zero_of(Form form) {
  switch (form) {
    case Form::q4_0: return 8;
    case Form::q5_0: return 16;
    case Form::q6_k: return 32;
    case Form::q8_0: case Form::iq4_nl: case Form::iq4_xs: case Form::mxfp4: return 128;
    default: return 0;
  }
}

// Whether the zero is taken off as a minimum, in floats: exact, and one operation less than in integers.
static constexpr bool zero_as_minimum(Form form) { return form == Form::q4_0 || form == Form::q5_0; }

// Values of 4-bit codes, + 128. GGML's iq4_nl and iq4_xs share one; mxfp4 has twice the values of E2M1.
alignas(16) static constexpr uint8_t table_nl[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                     129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) static constexpr uint8_t table_mx[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                                     128, 127, 126, 125, 124, 122, 120, 116};

template <Form F>
WB_INLINE const uint8_t *table_of() {
  return F == Form::mxfp4 ? table_mx : table_nl;
}

// The exponent field is rebiased by a multiplication, which also brings subnormals right.
WB_INLINE float from_float16(uint16_t half) {
  const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

// One code, as the kernels multiply it: byte `at` of register `i` of a group.
template <Form F>
WB_INLINE int code_at(const uint8_t *codes, int i, int at) {
  if (F == Form::q8_0) return codes[i * 64 + at];
  const int low = codes[(i & 3) * 64 + at] >> (i & 4) & 15;
  if (has_table(F)) return table_of<F>()[low];
  if (high_bits(F) == 1) return low | (codes[256 + at] >> i & 1) << 4;
  if (high_bits(F) == 2) return low | (codes[256 + (i >> 2) * 64 + at] >> 2 * (i & 3) & 3) << 4;
  return low;
}

// Scale and minimum of row `n` of a tile, in columns 16 * half to 16 * half + 15 of the group `g` behind its head.
struct Line {
  float scale, minimum;
};

template <Form F>
WB_INLINE Line line_of(const uint8_t *head, const uint8_t *group, int n, int half) {
  Line line{0.0f, 0.0f};
  const auto half_float = [n](const uint8_t *p) { return from_float16(read<uint16_t>(p + n * 2)); };
  if (!has_head(F)) {
    line.scale = half_float(group);
    if (has_minimum(F)) line.minimum = half_float(group + 32);
  } else if (has_minimum(F)) {
    line.scale = half_float(head) * group[n];
    line.minimum = -(half_float(head + 32) * group[16 + n]);
  } else {
    line.scale = half_float(head) * (int8_t)group[(F == Form::q6_k ? half * 16 : 0) + n];
  }
  return line;
}

}  // namespace weighbridge::WB_ISA
