// The pool of one model, on memory that the Python wrapper owns.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "kv_layout.h"

namespace weighbridge {

struct KvPool {
  char *base;
  int layers, num_blocks;
  KvLayout layout;
  Dtype dtype;

  KvPool(uintptr_t address, int layers, int num_blocks, int block_size, int kv_heads, int head_dim, int dtype)
      : base(reinterpret_cast<char *>(address)),
        layers(layers),
        num_blocks(num_blocks),
        layout{kv_heads, head_dim, block_size, layers},
        dtype(static_cast<Dtype>(dtype)) {}

  int64_t element_bytes() const { return dtype == Dtype::bfloat16 ? 2 : 4; }
  int64_t layer_bytes() const { return layout.kv_heads * layout.chunk_elements() * element_bytes(); }
  int64_t block_bytes() const { return layers * layer_bytes(); }

  char *layer(int index) const {
    if (index < 0 || index >= layers) throw std::out_of_range("no such layer in the KV cache");
    return base + index * layer_bytes();
  }

  void copy_block(int source, int target) const {
    if (source < 0 || source >= num_blocks || target < 0 || target >= num_blocks)
      throw std::out_of_range("no such block in the KV cache");
    if (source == target) return;
    std::memcpy(base + target * block_bytes(), base + source * block_bytes(), block_bytes());
  }
};

}  // namespace weighbridge
