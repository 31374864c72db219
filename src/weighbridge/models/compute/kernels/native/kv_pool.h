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

  // Throws std::invalid_argument for sizes that the kernels do not know, and for memory of another size.
  KvPool(uintptr_t address, int64_t bytes, int layers, int num_blocks, int block_size, int kv_heads, int head_dim,
         int dtype)
      : base(reinterpret_cast<char *>(address)),
        layers(layers),
        num_blocks(num_blocks),
        layout{kv_heads, head_dim, block_size, layers, static_cast<Dtype>(dtype)},
        dtype(static_cast<Dtype>(dtype)) {
    if (dtype < 0 || dtype > static_cast<int>(Dtype::int8)) throw std::invalid_argument("no such type of a KV cache");
    if (layers < 1 || num_blocks < 1 || kv_heads < 1 || head_dim < 2 || head_dim % 2 != 0 || head_dim > 1024 ||
        block_size < 16 || block_size % 16 != 0 || block_size > 64)
      throw std::invalid_argument("these are no sizes of a KV cache");
    // Divided, because the product may not fit into 64 bits.
    const int64_t chunks = bytes / (layout.chunk_elements() * element_bytes());
    if (bytes % (layout.chunk_elements() * element_bytes()) != 0 || chunks % layers != 0 ||
        chunks / layers % kv_heads != 0 || chunks / layers / kv_heads != num_blocks)
      throw std::invalid_argument("the memory of the KV cache has another size than its shape");
  }

  int64_t element_bytes() const { return dtype == Dtype::int8 ? 1 : dtype == Dtype::bfloat16 ? 2 : 4; }
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
