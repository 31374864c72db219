// Where keys and values live: [blocks, layers, kv heads] of chunks; a chunk is a key part, then a value part.
//
// Blocks come first, so that memory comes into being a few blocks at a time: with layers first, the first block beyond
// what was used before took a new huge page in every layer at once, and held all streams up for 100 to 170 ms.
//
//   float32   keys   [head_dim, block_size]            values [block_size, padded]
//   bfloat16  keys   [head_dim / 2, block_size, 2]     values [block_size / 2, padded, 2]
//   int8      keys   [head_dim, block_size]            values [block_size, padded]
//             then the scales of the keys [block_size] and of the values [block_size], in float32
//
// Keys are transposed, so one register holds the same element of consecutive tokens. In bfloat16, two neighbours
// along the summed dimension (two elements of a key, two tokens of a value) share 32 bits, as VDPBF16PS wants
// them; without that instruction a shift and a mask unpack them. `padded` is head_dim rounded up to 16, so that
// every register of values is full. Padding and unused slots may hold anything, NaN included.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace weighbridge {

// No copy of these may be left for the linker to choose from, see kernels.h.
#define WB_ALWAYS __attribute__((always_inline))

struct KvLayout {
  int kv_heads, head_dim, block_size, layers;
  Dtype dtype;

  WB_ALWAYS constexpr int64_t padded() const { return (head_dim + 15) / 16 * 16; }
  WB_ALWAYS constexpr int64_t key_elements() const { return int64_t(head_dim) * block_size; }
  // Of keys and values; where scales begin.
  WB_ALWAYS constexpr int64_t part_elements() const { return key_elements() + padded() * block_size; }
  // An int8 is a byte, so scales are counted as bytes too.
  WB_ALWAYS constexpr int64_t chunk_elements() const {
    return part_elements() + (dtype == Dtype::int8 ? 2 * int64_t(sizeof(float)) * block_size : 0);
  }
  // Within one layer, which begins at its chunks of block 0.
  WB_ALWAYS constexpr int64_t chunk(int64_t block, int64_t kv_head) const {
    return (block * layers * kv_heads + kv_head) * chunk_elements();
  }
};

}  // namespace weighbridge
