// Byte pair encoding of one word at a time, and a memory of words of fixed size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace weighbridge {

using TokenId = uint32_t;

struct Merge {
  uint32_t rank;
  TokenId token;
};

// The merges of a vocabulary by their two tokens: open addressing, at most half full.
class MergeTable {
 public:
  // `triples`: left, right and merged token of every merge, first merged first. Of equal pairs the last counts.
  MergeTable(const TokenId *triples, size_t count);
  // Null when the two do not merge.
  const Merge *find(TokenId left, TokenId right) const {
    const uint64_t key = uint64_t{left} << 32 | right;
    for (size_t slot = slot_of(key);; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return &slots_[slot].merge;
      if (slots_[slot].key == kEmpty) return nullptr;
    }
  }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge{0, 0};
  };
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull >> 20) & mask_; }

  std::vector<Slot> slots_;
  size_t mask_;
};

// Words seen before and their tokens. Two places per word; a new word takes that of the older one, so memory
// stays what it is whatever is sent, and words that are never repeated cost one place.
class WordMemory {
 public:
  static constexpr size_t kBytes = 24;  // longer words are merged each time
  static constexpr size_t kTokens = 9;  // and so are words of more tokens
  struct Key {
    uint64_t parts[3];
    uint32_t size;
    uint32_t place;  // of its pair
  };

  explicit WordMemory(size_t pairs_log2) : entries_(size_t{2} << pairs_log2), shift_(64 - pairs_log2) {}

  // Of a word of at most kBytes; `readable`: bytes from `word` on that may be read, the word's or not. Has its
  // place fetched from memory meanwhile: keys of several words should be made before the first is recalled.
  Key key_of(const char *word, size_t size, size_t readable) const {
    Key key{{0, 0, 0}, static_cast<uint32_t>(size), 0};
    if (readable < kBytes) {
      std::memcpy(key.parts, word, size);
    } else {
      std::memcpy(key.parts, word, kBytes);
      key.parts[0] &= size >= 8 ? ~uint64_t{0} : first_bytes(size);
      key.parts[1] &= size >= 16 ? ~uint64_t{0} : size > 8 ? first_bytes(size - 8) : 0;
      key.parts[2] &= size >= 24 ? ~uint64_t{0} : size > 16 ? first_bytes(size - 16) : 0;
    }
    key.place = place_of(key);
#if defined(__GNUC__)
    __builtin_prefetch(&entries_[key.place]);
#endif
    return key;
  }

  // Writes the tokens of a word that is known, and returns behind them; null for others. There must be room for
  // kTokens.
  TokenId *recall(const Key &key, TokenId *tokens) {
    Entry *pair = &entries_[key.place];
    if (!pair[0].holds(key)) {
      if (!pair[1].holds(key)) return nullptr;
      std::swap(pair[0], pair[1]);
    }
    std::memcpy(tokens, pair[0].tokens, sizeof pair[0].tokens);
    return tokens + pair[0].count;
  }
  void keep(const Key &key, const TokenId *tokens, size_t count);

 private:
  struct Entry {
    uint64_t parts[3] = {0, 0, 0};
    uint16_t size = 0;  // no word has none
    uint16_t count = 0;
    TokenId tokens[kTokens] = {};
    bool holds(const Key &key) const {
      return parts[0] == key.parts[0] && parts[1] == key.parts[1] && parts[2] == key.parts[2] && size == key.size;
    }
  };
  static_assert(sizeof(Entry) == 64, "an entry is a cache line");

  // A mask of the first `count` (under 8) bytes of a word in memory.
  static uint64_t first_bytes(size_t count) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return ~(~uint64_t{0} >> 8 * count);
#else
    return (uint64_t{1} << 8 * count) - 1;
#endif
  }

  uint32_t place_of(const Key &key) const {
    uint64_t mixed = (key.parts[0] ^ key.size) * 0x9E3779B97F4A7C15ull;
    mixed = (mixed ^ mixed >> 32 ^ key.parts[1]) * 0xC2B2AE3D27D4EB4Full;
    mixed = (mixed ^ mixed >> 32 ^ key.parts[2]) * 0x165667B19E3779F9ull;
    return static_cast<uint32_t>(mixed >> shift_ << 1);
  }

  std::vector<Entry> entries_;
  unsigned shift_;
};

// Tokens of single words: of the bytes' tokens the two of the lowest rank merge, the leftmost first (Sennrich et
// al. 2016). Bytes without a token are left out, as the `tokenizers` library does without an unknown token.
class WordMerger {
 public:
  // `bytes`: the token of each of the 256 bytes, or -1. `whole`: words that need no merging.
  WordMerger(std::vector<int64_t> bytes, MergeTable merges, std::unordered_map<std::string, TokenId> whole)
      : bytes_(std::move(bytes)), merges_(std::move(merges)), whole_(std::move(whole)) {}

  // Writes the tokens of a word, at most one per byte, and returns behind them.
  TokenId *encode(const char *word, size_t size, TokenId *tokens) const;

 private:
  size_t merge_few(TokenId *tokens, size_t count) const;
  size_t merge_many(TokenId *tokens, size_t count) const;

  std::vector<int64_t> bytes_;
  MergeTable merges_;
  std::unordered_map<std::string, TokenId> whole_;
};

}  // namespace weighbridge
