// BLAKE2b without a key (RFC 7693), to the bit what Python's hashlib computes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weighbridge {

// `digest` takes `size` bytes (1 to 64) of the hash of `count` bytes.
void blake2b(const unsigned char *data, size_t count, unsigned char *digest, size_t size);

}  // namespace weighbridge
