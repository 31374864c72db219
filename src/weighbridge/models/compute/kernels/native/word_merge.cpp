#include "word_merge.h"

#include <algorithm>
#include <queue>
#include <tuple>
#include <utility>

namespace weighbridge {

namespace {

constexpr size_t kFew = 48;  // words of more bytes are merged with a heap
constexpr uint32_t kNever = UINT32_MAX;
constexpr uint32_t kNowhere = UINT32_MAX;

}  // namespace

MergeTable::MergeTable(const TokenId *triples, size_t count) {
  size_t slots = 16;
  while (slots < 2 * count + 2) slots *= 2;
  slots_.resize(slots);
  mask_ = slots - 1;
  for (size_t rank = 0; rank < count; ++rank) {
    const TokenId *one = triples + 3 * rank;
    const uint64_t key = uint64_t{one[0]} << 32 | one[1];
    size_t slot = slot_of(key);
    while (slots_[slot].key != kEmpty && slots_[slot].key != key) slot = (slot + 1) & mask_;
    slots_[slot].key = key;
    slots_[slot].merge = {static_cast<uint32_t>(rank), one[2]};
  }
}

void WordMemory::keep(const Key &key, const TokenId *tokens, size_t count) {
  if (count > kTokens) return;
  Entry *pair = &entries_[key.place];
  pair[1] = pair[0];
  std::copy(key.parts, key.parts + 3, pair[0].parts);
  pair[0].size = static_cast<uint16_t>(key.size);
  pair[0].count = static_cast<uint16_t>(count);
  std::copy(tokens, tokens + count, pair[0].tokens);
}

TokenId *WordMerger::encode(const char *word, size_t size, TokenId *tokens) const {
  if (!whole_.empty()) {
    const auto found = whole_.find(std::string(word, size));
    if (found != whole_.end()) {
      *tokens = found->second;
      return tokens + 1;
    }
  }
  size_t count = 0;
  for (size_t index = 0; index < size; ++index) {
    const int64_t token = bytes_[static_cast<unsigned char>(word[index])];
    if (token >= 0) tokens[count++] = static_cast<TokenId>(token);
  }
  return tokens + (count <= kFew ? merge_few(tokens, count) : merge_many(tokens, count));
}

size_t WordMerger::merge_few(TokenId *token, size_t count) const {
  if (count < 2) return count;
  Merge next[kFew];  // of each token with the one behind it
  const auto look = [&](size_t index) {
    const Merge *found = merges_.find(token[index], token[index + 1]);
    next[index] = found ? *found : Merge{kNever, 0};
  };
  for (size_t index = 0; index + 1 < count; ++index) look(index);
  while (count > 1) {
    size_t best = 0;
    for (size_t index = 1; index + 1 < count; ++index)
      if (next[index].rank < next[best].rank) best = index;
    if (next[best].rank == kNever) break;
    token[best] = next[best].token;
    --count;
    for (size_t index = best + 1; index < count; ++index) {
      token[index] = token[index + 1];
      next[index] = next[index + 1];
    }
    if (best + 1 < count) look(best);
    if (best > 0) look(best - 1);
  }
  return count;
}

size_t WordMerger::merge_many(TokenId *token, size_t size) const {
  const uint32_t count = static_cast<uint32_t>(size);
  std::vector<uint32_t> before(count), behind(count);
  std::vector<char> gone(count, 0);
  using Candidate = std::tuple<uint32_t, uint32_t, TokenId>;  // rank, where its left token is, what it makes
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  const auto look = [&](uint32_t left, uint32_t right) {
    if (const Merge *found = merges_.find(token[left], token[right])) queue.emplace(found->rank, left, found->token);
  };
  for (uint32_t index = 0; index < count; ++index) {
    before[index] = index ? index - 1 : kNowhere;
    behind[index] = index + 1 < count ? index + 1 : kNowhere;
    if (index + 1 < count) look(index, index + 1);
  }
  while (!queue.empty()) {
    const auto [rank, left, made] = queue.top();
    queue.pop();
    const uint32_t right = gone[left] ? kNowhere : behind[left];
    if (right == kNowhere) continue;
    const Merge *now = merges_.find(token[left], token[right]);
    if (!now || now->token != made) continue;  // one of the two has merged with another since
    token[left] = made;
    gone[right] = 1;
    behind[left] = behind[right];
    if (behind[left] != kNowhere) {
      before[behind[left]] = left;
      look(left, behind[left]);
    }
    if (before[left] != kNowhere) look(before[left], left);
  }
  size_t kept = 0;
  for (uint32_t index = 0; index < count; ++index)
    if (!gone[index]) token[kept++] = token[index];
  return kept;
}

}  // namespace weighbridge
