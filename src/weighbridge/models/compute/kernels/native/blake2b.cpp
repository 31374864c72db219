#include "blake2b.h"

#include <algorithm>
#include <cstring>

namespace weighbridge {

namespace {

constexpr size_t kBlock = 128;
constexpr uint64_t kStart[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr uint8_t kOrder[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

#if defined(__GNUC__)
#define WB_INLINE inline __attribute__((always_inline))  // without it every mix is a call: half the speed
#else
#define WB_INLINE inline
#endif

WB_INLINE uint64_t rotated(uint64_t value, unsigned count) { return value >> count | value << (64 - count); }

WB_INLINE uint64_t little_endian(const unsigned char *bytes) {
  uint64_t value = 0;
  for (int index = 7; index >= 0; --index) value = value << 8 | bytes[index];
  return value;
}

WB_INLINE void mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y) {
  v[a] += v[b] + x;
  v[d] = rotated(v[d] ^ v[a], 32);
  v[c] += v[d];
  v[b] = rotated(v[b] ^ v[c], 24);
  v[a] += v[b] + y;
  v[d] = rotated(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = rotated(v[b] ^ v[c], 63);
}

template <int Round>
WB_INLINE void round(uint64_t *v, const uint64_t *m) {
  constexpr const uint8_t *s = kOrder[Round % 10];
  mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
  mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
  mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
  mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
  mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
  mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
  mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
  mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
}

void compress(uint64_t *state, const unsigned char *block, uint64_t hashed, bool last) {
  uint64_t m[16], v[16];
  for (int index = 0; index < 16; ++index) m[index] = little_endian(block + 8 * index);
  std::copy(state, state + 8, v);
  std::copy(kStart, kStart + 8, v + 8);
  v[12] ^= hashed;
  if (last) v[14] = ~v[14];
  round<0>(v, m), round<1>(v, m), round<2>(v, m), round<3>(v, m), round<4>(v, m), round<5>(v, m);
  round<6>(v, m), round<7>(v, m), round<8>(v, m), round<9>(v, m), round<10>(v, m), round<11>(v, m);
  for (int index = 0; index < 8; ++index) state[index] ^= v[index] ^ v[index + 8];
}

}  // namespace

void blake2b(const unsigned char *data, size_t count, unsigned char *digest, size_t size) {
  uint64_t state[8];
  std::copy(kStart, kStart + 8, state);
  state[0] ^= 0x01010000 ^ size;
  size_t done = 0;
  for (; count - done > kBlock; done += kBlock) compress(state, data + done, done + kBlock, false);
  unsigned char rest[kBlock] = {};
  std::memcpy(rest, data + done, count - done);
  compress(state, rest, count, true);
  for (size_t index = 0; index < size; ++index)
    digest[index] = static_cast<unsigned char>(state[index / 8] >> 8 * (index % 8));
}

}  // namespace weighbridge
