// Text cut into words as a tokenizer's regular expressions do, on the classes of characters they name.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace weighbridge {

// The sets of a pattern that a character is in, one bit each, and whether that has been found out yet.
using Membership = uint32_t;
constexpr Membership kKnown = 1u << 31;
constexpr Membership kRefused = 1u << 30;  // texts with this character are for somebody else
constexpr size_t kCodePoints = 0x110000;

// What sets each character is in. It grows while other threads read it.
class Characters {
 public:
  Characters()
      : table_(static_cast<std::atomic<Membership> *>(std::calloc(kCodePoints, sizeof(Membership))), std::free) {
    if (!table_) throw std::bad_alloc();
  }
  Membership of(uint32_t code) const { return table_.get()[code].load(std::memory_order_relaxed); }
  void learn(uint32_t code, Membership sets) {
    table_.get()[code].store(sets | kKnown, std::memory_order_relaxed);
  }

 private:
  std::unique_ptr<std::atomic<Membership>, void (*)(void *)> table_;
};

// A text as its characters' memberships; character i begins at byte `offsets[i]`, with one more for the end.
struct Text {
  const char *bytes = nullptr;
  size_t size = 0;
  std::vector<Membership> members;
  std::vector<uint32_t> offsets;

  size_t length() const { return members.size(); }
  // False when characters are unknown (they are in `unknown`, each once) or refused.
  bool read(const Characters &characters, const char *utf8, size_t count, std::vector<uint32_t> &unknown);
};

enum class Op : int32_t { run, split, jump, not_next, match };

struct Instruction {
  Op op;
  Membership set;    // run, not_next: the bit of a set
  int32_t low;       // run: how many at least; split, jump: where to go (split: if what follows it fails)
  int32_t high;      // run: how many at most, or -1
  bool sure = false; // run: giving back characters cannot help
};

struct Alternative {
  Membership first;  // sets of the characters it can begin with
  int32_t start;
};

// One regular expression, of which every match is a word and everything between matches too.
class Pattern {
 public:
  Pattern(std::vector<Alternative> alternatives, std::vector<Instruction> program);

  // Calls `word(begin, end)` for each word of the characters from `begin` to `end`.
  template <typename Word>
  void split(const Membership *text, size_t begin, size_t end, Word &&word) const {
    size_t open = begin;
    for (size_t at = begin; at < end;) {
      const size_t stop = match(text, at, end);
      if (stop == at) {
        ++at;
        continue;
      }
      if (open < at) word(open, at);
      word(at, stop);
      open = at = stop;
    }
    if (open < end) word(open, end);
  }

 private:
  static constexpr size_t kNoMatch = SIZE_MAX;

  // The end of the first alternative that matches at `at`, as backtracking engines choose; `at` for none.
  size_t match(const Membership *text, size_t at, size_t end) const {
    const Membership members = text[at];
    if (!(members & any_)) return at;
    for (const Alternative &one : alternatives_) {
      if (!(members & one.first)) continue;
      const size_t stop = follow(text, one.start, at, end);
      if (stop != kNoMatch) return stop;
    }
    return at;
  }
  size_t follow(const Membership *text, int32_t instruction, size_t at, size_t end) const;

  std::vector<Alternative> alternatives_;
  std::vector<Instruction> program_;
  Membership any_ = 0;
};

}  // namespace weighbridge
