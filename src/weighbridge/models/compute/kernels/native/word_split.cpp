#include "word_split.h"

#include <algorithm>
#include <utility>

namespace weighbridge {

bool Text::read(const Characters &characters, const char *utf8, size_t count, std::vector<uint32_t> &unknown) {
  bytes = utf8;
  size = count;
  members.resize(count);
  offsets.resize(count + 1);
  const auto *data = reinterpret_cast<const unsigned char *>(utf8);
  Membership everywhere = kKnown, anywhere = 0;
  size_t length = 0;
  for (size_t at = 0; at < count; ++length) {
    uint32_t code = data[at];
    offsets[length] = static_cast<uint32_t>(at);
    if (code < 0x80) {
      at += 1;
    } else if (code < 0xE0) {
      code = (code & 0x1F) << 6 | (data[at + 1] & 0x3F);
      at += 2;
    } else if (code < 0xF0) {
      code = (code & 0x0F) << 12 | (data[at + 1] & 0x3Fu) << 6 | (data[at + 2] & 0x3F);
      at += 3;
    } else {
      code = (code & 0x07) << 18 | (data[at + 1] & 0x3Fu) << 12 | (data[at + 2] & 0x3Fu) << 6 | (data[at + 3] & 0x3F);
      at += 4;
    }
    const Membership sets = characters.of(code);
    if (!(sets & kKnown)) unknown.push_back(code);
    members[length] = sets;
    everywhere &= sets;
    anywhere |= sets;
  }
  members.resize(length);
  offsets.resize(length + 1);
  offsets[length] = static_cast<uint32_t>(count);
  std::sort(unknown.begin(), unknown.end());
  unknown.erase(std::unique(unknown.begin(), unknown.end()), unknown.end());
  return (everywhere & kKnown) && !(anywhere & kRefused);
}

Pattern::Pattern(std::vector<Alternative> alternatives, std::vector<Instruction> program)
    : alternatives_(std::move(alternatives)), program_(std::move(program)) {
  for (const Alternative &one : alternatives_) any_ |= one.first;
  for (size_t index = 0; index + 1 < program_.size(); ++index)
    program_[index].sure = program_[index].low == program_[index].high || program_[index + 1].op == Op::match;
}

size_t Pattern::follow(const Membership *text, int32_t instruction, size_t at, size_t end) const {
  for (;;) {
    const Instruction &now = program_[instruction];
    switch (now.op) {
      case Op::run: {
        const size_t most = now.high < 0 ? end : std::min(end, at + static_cast<size_t>(now.high));
        const size_t least = at + static_cast<size_t>(now.low);
        size_t stop = at;
        while (stop < most && (text[stop] & now.set)) ++stop;
        if (stop < least) return kNoMatch;
        if (now.sure) {
          at = stop;
          ++instruction;
          continue;
        }
        for (;; --stop) {
          const size_t found = follow(text, instruction + 1, stop, end);
          if (found != kNoMatch || stop == least) return found;
        }
      }
      case Op::split: {
        const size_t found = follow(text, instruction + 1, at, end);
        if (found != kNoMatch) return found;
        instruction = now.low;
        continue;
      }
      case Op::jump:
        instruction = now.low;
        continue;
      case Op::not_next:
        if (at < end && (text[at] & now.set)) return kNoMatch;
        ++instruction;
        continue;
      case Op::match:
        return at;
    }
  }
}

}  // namespace weighbridge
