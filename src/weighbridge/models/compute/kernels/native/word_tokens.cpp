// The module _words: exact token ids of a text, word by word, and the chain of digests that names its blocks.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <tuple>

#include "blake2b.h"
#include "word_merge.h"
#include "word_split.h"

namespace nb = nanobind;

namespace weighbridge {

namespace {

constexpr size_t kPairsLog2 = 15;              // 65,536 words, 4 MB
constexpr size_t kAlone = 32 * 1024;           // texts of more bytes are worth letting others run meanwhile
constexpr size_t kScratchKept = 1024 * 1024;   // characters of the longest text whose buffers are kept
constexpr size_t kAhead = 32;                  // words whose places in the memory are fetched at one time
constexpr size_t kDigest = 32;

// Tokens with a name of their own, which are cut out of a text before anything else: leftmost, then longest.
class NamedTokens {
 public:
  explicit NamedTokens(const std::vector<std::tuple<std::string, TokenId>> &named) : tokens_(1, kNone) {
    for (const auto &[name, token] : named) {
      uint32_t node = 0;
      for (const unsigned char byte : name) {
        const auto [found, fresh] = edges_.emplace(uint64_t{node} << 8 | byte, tokens_.size());
        if (fresh) tokens_.push_back(kNone);
        node = found->second;
      }
      tokens_[node] = token;
      begins_[static_cast<unsigned char>(name[0])] = true;
    }
  }

  // Calls `between(begin, end)` and `named(token)` in the order of the text's characters from `begin` to `end`.
  template <typename Between, typename Named>
  void cut(const Text &text, size_t begin, size_t end, Between &&between, Named &&named) const {
    size_t open = begin;
    for (size_t at = edges_.empty() ? end : begin; at < end;) {
      size_t length = 0;
      int64_t token = kNone;
      if (begins_[static_cast<unsigned char>(text.bytes[text.offsets[at]])])
        std::tie(length, token) = longest(text, at, end);
      if (token == kNone) {
        ++at;
        continue;
      }
      if (open < at) between(open, at);
      named(static_cast<TokenId>(token));
      const size_t stop = text.offsets[at] + length;
      while (text.offsets[at] < stop) ++at;
      open = at;
    }
    if (open < end) between(open, end);
  }

 private:
  static constexpr int64_t kNone = -1;

  std::tuple<size_t, int64_t> longest(const Text &text, size_t at, size_t end) const {
    const char *bytes = text.bytes + text.offsets[at];
    const size_t most = text.offsets[end] - text.offsets[at];
    std::tuple<size_t, int64_t> found{0, kNone};
    uint32_t node = 0;
    for (size_t length = 0; length < most; ++length) {
      const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(bytes[length]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (tokens_[node] != kNone) found = {length + 1, tokens_[node]};
    }
    return found;
  }

  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int64_t> tokens_;
  bool begins_[256] = {};
};

struct Word {
  const char *bytes;
  size_t size;
  WordMemory::Key key;  // if it is short enough for one
};

struct Scratch {
  Text text;
  std::vector<uint32_t> unknown;
  std::vector<TokenId> tokens;  // room for what may come; those found end at `next`
  TokenId *next = nullptr;
  Word ahead[kAhead];  // words whose tokens come next
  size_t waiting = 0;

  size_t count() const { return static_cast<size_t>(next - tokens.data()); }
};

// The digests of `blocks` full blocks, each of the one before it (`parent` stands before the first) and its tokens,
// as int64. `token_at` gives the tokens by their number.
template <typename TokenAt>
nb::list digests_of(const nb::bytes &parent, size_t blocks, size_t block_size, TokenAt &&token_at) {
  const size_t tokens_size = block_size * sizeof(int64_t);
  std::vector<unsigned char> data(std::max(parent.size(), kDigest) + tokens_size);
  std::memcpy(data.data(), parent.c_str(), parent.size());
  size_t before = parent.size();
  unsigned char digest[kDigest];
  nb::list digests;
  for (size_t block = 0; block < blocks; ++block) {
    for (size_t index = 0; index < block_size; ++index) {
      const int64_t token = token_at(block * block_size + index);
      std::memcpy(data.data() + before + index * sizeof token, &token, sizeof token);
    }
    blake2b(data.data(), before + tokens_size, digest, kDigest);
    digests.append(nb::bytes(digest, kDigest));
    std::memcpy(data.data(), digest, kDigest);
    before = kDigest;
  }
  return digests;
}

// Answers for a text: what was asked for; or a str of the characters that must be learned first; or None where the
// text has a refused character.
class WordEncoder {
 public:
  using PatternParts = std::tuple<std::vector<std::tuple<Membership, int32_t>>,
                                  std::vector<std::tuple<int32_t, Membership, int32_t, int32_t>>>;
  using Names = std::vector<std::tuple<std::string, TokenId>>;
  using Ids = std::vector<TokenId>;

  WordEncoder(const std::vector<PatternParts> &patterns, std::vector<int64_t> bytes, nb::bytes triples,
              const std::vector<std::tuple<nb::bytes, TokenId>> &whole, const std::vector<Names> &named,
              std::tuple<Ids, Ids> around)
      : merger_(std::move(bytes),
                MergeTable(reinterpret_cast<const TokenId *>(triples.c_str()), triples.size() / (3 * sizeof(TokenId))),
                by_name(whole)),
        around_(std::move(around)),
        memory_(kPairsLog2) {
    for (const auto &[alternatives, program] : patterns) {
      std::vector<Alternative> starts;
      for (const auto &[first, start] : alternatives) starts.push_back({first, start});
      std::vector<Instruction> instructions;
      for (const auto &[op, set, low, high] : program)
        instructions.push_back({static_cast<Op>(op), set, low, high});
      patterns_.emplace_back(std::move(starts), std::move(instructions));
    }
    for (const Names &names : named) named_.emplace_back(names);
  }

  void learn(uint32_t code, Membership sets) { characters_.learn(code, sets); }

  // The token ids, with those around each text if `around`.
  nb::object encode(nb::str text, bool around) {
    return answer(text, around, [](const TokenId *tokens, size_t count) { return listed(tokens, count); });
  }

  // How many tokens there are, and the digests of their full blocks.
  nb::object weigh(nb::str text, bool around, nb::bytes parent, size_t block_size) {
    if (block_size < 1) throw nb::value_error("a block has one token at least");
    return answer(text, around, [&](const TokenId *tokens, size_t count) -> nb::object {
      const auto token_at = [tokens](size_t index) { return int64_t{tokens[index]}; };
      return nb::make_tuple(count, digests_of(parent, count / block_size, block_size, token_at));
    });
  }

 private:
  template <typename Found>
  nb::object answer(const nb::str &text, bool around, Found &&found) {
    Py_ssize_t size = 0;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!utf8) throw nb::python_error();
    if (static_cast<uint64_t>(size) > UINT32_MAX / 2) return nb::none();
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    Scratch own;
    Scratch &scratch = alone ? scratch_ : own;
    WordMemory *memory = alone ? &memory_ : nullptr;
    bool done;
    if (static_cast<size_t>(size) > kAlone) {
      nb::gil_scoped_release release;
      done = encode_into(utf8, static_cast<size_t>(size), around, scratch, memory);
    } else {
      done = encode_into(utf8, static_cast<size_t>(size), around, scratch, memory);
    }
    nb::object result = done ? found(scratch.tokens.data(), scratch.count()) : unknown(scratch);
    if (scratch.text.members.capacity() > kScratchKept) scratch = Scratch();
    return result;
  }

  static std::unordered_map<std::string, TokenId> by_name(const std::vector<std::tuple<nb::bytes, TokenId>> &whole) {
    std::unordered_map<std::string, TokenId> made;
    for (const auto &[word, token] : whole) made.emplace(std::string(word.c_str(), word.size()), token);
    return made;
  }

  bool encode_into(const char *utf8, size_t size, bool around, Scratch &scratch, WordMemory *memory) const {
    const auto &[before, behind] = around_;
    // Every token stands for a byte at least, and recalling a word may write past its last one.
    const size_t room = before.size() + size + behind.size() + WordMemory::kTokens;
    if (scratch.tokens.size() < room) scratch.tokens.resize(room);
    scratch.next = scratch.tokens.data();
    scratch.unknown.clear();
    if (!scratch.text.read(characters_, utf8, size, scratch.unknown)) return false;
    if (around) scratch.next = std::copy(before.begin(), before.end(), scratch.next);
    scratch.waiting = 0;
    cut(0, 0, scratch.text.length(), scratch, memory);
    finish(scratch, memory);
    if (around) scratch.next = std::copy(behind.begin(), behind.end(), scratch.next);
    return true;
  }

  void cut(size_t level, size_t begin, size_t end, Scratch &scratch, WordMemory *memory) const {
    if (level == named_.size()) return split(0, begin, end, scratch, memory);
    named_[level].cut(
        scratch.text, begin, end, [&](size_t from, size_t to) { cut(level + 1, from, to, scratch, memory); },
        [&](TokenId token) {
          finish(scratch, memory);
          *scratch.next++ = token;
        });
  }

  void split(size_t level, size_t begin, size_t end, Scratch &scratch, WordMemory *memory) const {
    if (level == patterns_.size()) {
      word(begin, end, scratch, memory);
      if (scratch.waiting == kAhead) finish(scratch, memory);
      return;
    }
    patterns_[level].split(scratch.text.members.data(), begin, end,
                           [&](size_t from, size_t to) { split(level + 1, from, to, scratch, memory); });
  }

  void word(size_t begin, size_t end, Scratch &scratch, const WordMemory *memory) const {
    const size_t from = scratch.text.offsets[begin];
    Word &now = scratch.ahead[scratch.waiting++];
    now.bytes = scratch.text.bytes + from;
    now.size = scratch.text.offsets[end] - from;
    if (memory && now.size <= WordMemory::kBytes)
      now.key = memory->key_of(now.bytes, now.size, scratch.text.size - from);
  }

  void finish(Scratch &scratch, WordMemory *memory) const {
    for (size_t index = 0; index < scratch.waiting; ++index) {
      const Word &now = scratch.ahead[index];
      TokenId *const start = scratch.next;
      const bool short_enough = memory && now.size <= WordMemory::kBytes;
      if (short_enough && (scratch.next = memory->recall(now.key, start))) continue;
      scratch.next = merger_.encode(now.bytes, now.size, start);
      if (short_enough) memory->keep(now.key, start, static_cast<size_t>(scratch.next - start));
    }
    scratch.waiting = 0;
  }

  static nb::object listed(const TokenId *tokens, size_t count) {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!list.is_valid()) throw nb::python_error();
    for (size_t index = 0; index < count; ++index) {
      PyObject *number = PyLong_FromUnsignedLong(tokens[index]);
      if (!number) throw nb::python_error();
      PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(index), number);
    }
    return list;
  }

  static nb::object unknown(const Scratch &scratch) {
    if (scratch.unknown.empty()) return nb::none();
    const auto count = static_cast<Py_ssize_t>(scratch.unknown.size());
    return nb::steal(PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, scratch.unknown.data(), count));
  }

  Characters characters_;
  std::vector<Pattern> patterns_;
  std::vector<NamedTokens> named_;
  WordMerger merger_;
  std::tuple<Ids, Ids> around_;
  // One text at a time uses the memory and the buffers; others that come meanwhile go without.
  std::mutex busy_;
  WordMemory memory_;
  Scratch scratch_;
};

// The digests of the full blocks of tokens[start:end].
nb::list chain(nb::bytes parent, nb::list tokens, Py_ssize_t start, Py_ssize_t end, Py_ssize_t block_size) {
  if (block_size < 1 || start < 0 || end > static_cast<Py_ssize_t>(tokens.size()))
    throw nb::index_error("blocks beyond the tokens");
  const size_t blocks = end > start ? static_cast<size_t>((end - start) / block_size) : 0;
  return digests_of(parent, blocks, static_cast<size_t>(block_size), [&](size_t index) {
    const int64_t token = PyLong_AsLongLong(PyList_GET_ITEM(tokens.ptr(), start + static_cast<Py_ssize_t>(index)));
    if (token == -1 && PyErr_Occurred()) throw nb::python_error();
    return token;
  });
}

}  // namespace

}  // namespace weighbridge

NB_MODULE(_words, module) {
  using namespace weighbridge;
  module.doc() = "Token ids word by word and digests of blocks; weighbridge.models.text.word_tokens decides for whom.";
  nb::class_<WordEncoder>(module, "WordEncoder")
      .def(nb::init<const std::vector<WordEncoder::PatternParts> &, std::vector<int64_t>, nb::bytes,
                    const std::vector<std::tuple<nb::bytes, TokenId>> &, const std::vector<WordEncoder::Names> &,
                    std::tuple<WordEncoder::Ids, WordEncoder::Ids>>(),
           nb::arg("patterns"), nb::arg("bytes"), nb::arg("merges"), nb::arg("whole"), nb::arg("named"),
           nb::arg("around"))
      .def("learn", &WordEncoder::learn, nb::arg("code"), nb::arg("sets"))
      .def("encode", &WordEncoder::encode, nb::arg("text"), nb::arg("around"))
      .def("weigh", &WordEncoder::weigh, nb::arg("text"), nb::arg("around"), nb::arg("parent"), nb::arg("block_size"));
  module.def("chain", &chain, nb::arg("parent"), nb::arg("tokens"), nb::arg("start"), nb::arg("end"),
             nb::arg("block_size"));
}
