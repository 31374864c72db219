// Tensors as Python hands them over to what keeps their addresses: an address and a size in bytes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace weighbridge {

using Memory = std::pair<uintptr_t, int64_t>;  // (0, 0): there is none

// The address of exactly `bytes` bytes, which are there. Throws std::invalid_argument for any other size.
template <class T>
T *take(const Memory &memory, int64_t bytes, const char *what) {
  if (memory.first == 0 || memory.second != bytes)
    throw std::invalid_argument(std::string(what) + " takes " + std::to_string(bytes) + " bytes, not " +
                                std::to_string(memory.first == 0 ? 0 : memory.second));
  return reinterpret_cast<T *>(memory.first);
}

template <class T>
T *take_if_there(const Memory &memory, int64_t bytes, const char *what) {
  return memory.first == 0 && memory.second == 0 ? nullptr : take<T>(memory, bytes, what);
}

}  // namespace weighbridge
