// Fuzz target of the compiled layer: what Python hands to it is taken or refused, and nothing else is touched.
//
// An input says the sizes of a model, of its memory and of a batch, and what is in them. Every piece of memory is a heap
// block of just the bytes that it is said to have, so that AddressSanitizer sees the first byte beyond. Numbers are mostly
// near what is allowed, one beyond it included; now and then they are any. The address of a tensor is never wrong: the
// wrappers take it from a tensor together with its size.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_run.h"
#include "blake2b.h"
#include "elementwise.h"
#include "forward.h"
#include "kv_pool.h"
#include "linear_checks.h"
#include "low_rank_checks.h"
#include "memory.h"
#include "moe.h"
#include "word_merge.h"
#include "word_split.h"

using namespace weighbridge;

namespace {

constexpr int64_t largest_block = 1 << 20;

// An input, and the memory that was made of it.
class Input {
 public:
  Input(const uint8_t *data, size_t size) : bytes_(data, size) {}
  ~Input() {
    for (void *block : blocks_) std::free(block);
  }

  // Mostly from `low` to `high`, one too many or too few included.
  int64_t near(int64_t low, int64_t high) {
    const auto kind = bytes_.ConsumeIntegral<uint8_t>();
    const int64_t usual = within(low, high);
    if (kind < 240 || is_exact_) return usual;
    if (kind < 244) return low - 1;
    return kind < 250 ? high + 1 : (int64_t)(int32_t)((uint64_t)usual * 2654435761u);
  }
  // Always of two bytes, or of four: what is read next stays where it is when a byte before it changes a range.
  int64_t within(int64_t low, int64_t high) {
    const uint64_t span = high > low ? (uint64_t)(high - low) : 0;
    const uint64_t drawn = span < 1 << 16 ? bytes_.ConsumeIntegral<uint16_t>() : bytes_.ConsumeIntegral<uint32_t>();
    return low + (int64_t)(drawn % (span + 1));
  }
  bool flag() { return bytes_.ConsumeBool(); }
  bool rarely() { return bytes_.ConsumeIntegral<uint8_t>() > 250 && !is_exact_; }
  // From now on everything is as it should be, but the rows of one matrix: what computes with it runs to its end.
  void only_one_matrix_is_odd() {
    is_exact_ = true;
    until_odd_ = within(0, 11);
  }
  // How many rows the next matrix has beyond those it should: some tiles, and one more or less.
  int64_t odd_rows() {
    return is_exact_ && until_odd_-- == 0 ? rows_per_tile * within(-2, 8) + within(-1, 1) : 0;
  }
  float number() {
    static constexpr float odd[] = {0.0f, -1.0f, 3e38f, INFINITY, -INFINITY, NAN, 1e-40f};
    const bool is_odd = rarely();
    const int64_t drawn = within(0, 400);
    return is_odd ? odd[drawn % 7] : (float)(drawn - 200) / 16;
  }
  uint8_t byte() { return bytes_.ConsumeIntegral<uint8_t>(); }
  std::string rest() { return bytes_.ConsumeRemainingBytesAsString(); }

  // A block of that many bytes, or rarely of a few more or less; what is in it repeats some bytes of the input.
  Memory memory(int64_t wanted, size_t alignment = 64) {
    const bool is_other = rarely();
    const int64_t off = within(-64, 64), size = is_other ? wanted + off : wanted;
    if (size <= 0 || size > largest_block) return {0, 0};
    void *block = nullptr;
    if (posix_memalign(&block, alignment, size) != 0) throw std::bad_alloc();
    blocks_.push_back(block);
    const std::string pattern = bytes_.ConsumeBytesAsString(within(0, 24));
    std::memset(block, 0, size);
    for (int64_t at = 0; at < size && !pattern.empty(); at += (int64_t)pattern.size())
      std::memcpy(static_cast<char *>(block) + at, pattern.data(), std::min<int64_t>(pattern.size(), size - at));
    return {reinterpret_cast<uintptr_t>(block), size};
  }

  std::vector<int32_t> numbers(int64_t count, int64_t low, int64_t high) {
    std::vector<int32_t> made;
    for (int64_t i = 0; i < count; i++) made.push_back((int32_t)near(low, high));
    made.shrink_to_fit();
    return made;
  }

 private:
  FuzzedDataProvider bytes_;
  std::vector<void *> blocks_;
  bool is_exact_ = false;
  int64_t until_odd_ = -1;
};

// A matrix of mostly that shape, out of memory of mostly its size.
PackedMatrix matrix_of(Input &in, int64_t rows, int64_t columns) {
  static constexpr int forms[] = {4, 8, 16, 40, 41, 43, 50, 51, 42, 44, 54, 64, 2, 0};
  const int form = forms[in.within(0, in.rarely() ? 13 : columns % 256 == 0 ? 11 : 7)];
  rows += in.odd_rows();
  if (in.rarely()) rows = in.near(1, 80);
  if (in.rarely()) columns = in.near(1, 80);
  if (!is_form(form) || rows < 1 || columns < 1 || rows > 4096 || columns > 4096)
    return packed_matrix({0, 0}, {0, 0}, {0, 0}, 1, form, rows, columns);
  const Form own = static_cast<Form>(form);
  const int64_t scale_bytes = tiles_of(rows) * tile_scale_bytes(own, columns);
  const Memory codes = in.memory(tiles_of(rows) * tile_code_bytes(own, columns));
  const Memory scales = scale_bytes ? in.memory(scale_bytes) : Memory{0, 0};
  const Memory bias = in.flag() ? in.memory(rows * 4) : Memory{0, 0};
  return packed_matrix(codes, scales, bias, in.number(), form, rows, columns);
}

KvPool pool_of(Input &in, int layers, int kv_heads, int head_dim, Dtype dtype) {
  static constexpr int sizes[] = {16, 32, 64, 48, 8, 128, 0};
  const int block = sizes[in.rarely() ? in.within(0, 6) : in.within(0, 3)];
  const int blocks = (int)in.near(1, 6);
  if (head_dim < 1 || head_dim > 1025) return {0, 0, layers, blocks, block, kv_heads, head_dim, (int)dtype};
  const KvLayout layout{kv_heads, head_dim, block, layers, dtype};
  const int64_t bytes = std::max(blocks, 0) * (int64_t)layers * kv_heads * layout.chunk_elements() *
                        (dtype == Dtype::bfloat16 ? 2 : 4);
  const Memory memory = in.memory(bytes);
  return {memory.first, memory.second, layers, blocks, block, kv_heads, head_dim, (int)dtype};
}

// The rows of a batch: `starts` and `contexts` as a batch has them, or nearly.
struct Batch {
  std::vector<int32_t> starts, contexts, tables;
  int64_t blocks;

  Batch(Input &in, const KvPool &pool, int64_t tokens) : blocks(in.within(0, 5)) {
    const int64_t sequences = in.within(0, 4);
    starts.push_back(in.rarely() ? (int32_t)in.near(0, tokens) : 0);
    for (int64_t s = 0; s < sequences; s++) {
      const int32_t next = s + 1 == sequences && in.flag() ? (int32_t)tokens : (int32_t)in.near(starts.back(), tokens);
      contexts.push_back((int32_t)in.near(std::max<int64_t>(int64_t(next) - starts.back(), 0), blocks * pool.layout.block_size));
      starts.push_back(next);
    }
    tables = in.numbers(sequences * blocks, 0, pool.num_blocks - 1);
    starts.shrink_to_fit();
    contexts.shrink_to_fit();
  }
  LayoutView view() const {
    return {starts.data(), contexts.data(), tables.data(), (int64_t)contexts.size(), blocks};
  }
};

void forward(Input &in) {
  const Dtype dtype = in.flag() ? Dtype::bfloat16 : Dtype::float32;
  const int64_t element = dtype == Dtype::bfloat16 ? 2 : 4;
  const int kv_heads = (int)in.within(1, 3), heads = kv_heads * (int)in.within(1, 3);
  const int head_dim = 2 * (int)in.within(1, 24), hidden = 32 * (int)in.within(1, 3);
  const int intermediate = 32 * (int)in.within(1, 3), layers = (int)in.within(1, 2);
  const int64_t vocabulary = in.within(1, 40), positions = in.within(1, 40);
  const ModelShape shape{hidden, intermediate, heads, kv_heads, head_dim, 1e-5f, in.number(), dtype};
  const bool packed = in.flag();
  const int64_t table = vocabulary * hidden * element;
  const ModelWeights weights{
      packed ? nullptr : take<const void>(in.memory(table), table, "the embedding"),
      packed ? matrix_of(in, vocabulary, hidden) : PackedMatrix{},
      vocabulary,
      take<const float>(in.memory(positions * head_dim * 4), positions * head_dim * 4, "the rotary table"),
      positions,
      take<const float>(in.memory(hidden * 4), hidden * 4, "the last norm"),
      matrix_of(in, in.within(1, 40), hidden)};
  Forward model(shape, weights);
  const auto norm = [&](int64_t width) { return take<const float>(in.memory(width * 4), width * 4, "a norm"); };
  for (int layer = 0; layer < layers; layer++)
    model.add_layer({norm(hidden), norm(hidden), in.flag() ? norm(head_dim) : nullptr,
                     in.flag() ? norm(head_dim) : nullptr, matrix_of(in, (heads + 2 * kv_heads) * head_dim, hidden),
                     matrix_of(in, hidden, heads * head_dim), matrix_of(in, 2 * intermediate, hidden),
                     matrix_of(in, hidden, intermediate), in.flag(), (int)in.within(0, 40)});
  const KvPool pool = pool_of(in, layers, kv_heads, head_dim, dtype);
  const int passes = (int)in.within(1, 2);
  for (int pass = 0; pass < passes; pass++) {
    const int64_t tokens = in.within(0, 40), real = in.rarely() ? in.within(0, tokens) : tokens;
    const Batch layout(in, pool, real);
    const auto ids = in.numbers(tokens, 0, vocabulary - 1), places = in.numbers(real, 0, positions - 1);
    const auto slots = in.numbers(real, 0, (int64_t)pool.num_blocks * pool.layout.block_size - 1);
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < tokens; row++)
      if (in.flag()) rows.push_back(in.rarely() ? (int32_t)in.near(0, tokens - 1) : row);
    rows.shrink_to_fit();
    const auto states = in.numbers(in.within(0, 3), 0, (int64_t)rows.size() - 1);
    const int64_t logit_bytes = (int64_t)rows.size() * model.outputs() * element;
    const int64_t state_bytes = (int64_t)states.size() * hidden * element;
    void *logits = logit_bytes ? take<void>(in.memory(logit_bytes), logit_bytes, "the logits") : nullptr;
    void *kept = state_bytes ? take<void>(in.memory(state_bytes), state_bytes, "the states") : nullptr;
    model.run({ids.data(), tokens, real, places.data(), slots.data(), layout.view(), rows.data(), (int64_t)rows.size(),
               logits, states.data(), (int64_t)states.size(), kept},
              pool, (int)in.within(1, 4));
  }
}

void linear(Input &in) {
  const int64_t columns = in.flag() ? 256 : 32 * in.within(1, 4);
  PackedMatrix matrix = matrix_of(in, in.within(1, 70), columns);
  if (in.flag()) matrix = stacked(matrix, matrix_of(in, in.within(1, 70), columns));
  const Dtype dtype = in.flag() ? Dtype::bfloat16 : Dtype::float32;
  check_shape(matrix, "the matrix", matrix.rows, matrix.columns, dtype);
  const int64_t element = dtype == Dtype::bfloat16 ? 2 : 4, tokens = in.within(1, 120);
  LinearArgs args{};
  args.out = take<void>(in.memory(tokens * matrix.rows * element), tokens * matrix.rows * element, "the output");
  args.x = take<const void>(in.memory(tokens * matrix.columns * element), tokens * matrix.columns * element, "x");
  args.dtype = dtype;
  args.tokens = tokens;
  args.matrix = matrix;
  args.block = block_tokens(matrix, tokens);
  const int64_t scratch = args.block * scratch_bytes(matrix);
  args.scratch = take<uint8_t>(in.memory(scratch), scratch, "the scratch");
  with_team((int)in.within(1, 3), [&](Team &team, int) { active_linear().linear(args, team); });
}

void adapters(Input &in) {
  const Dtype dtype = in.flag() ? Dtype::bfloat16 : Dtype::float32;
  const int64_t element = dtype == Dtype::bfloat16 ? 2 : 4;
  const int64_t columns = in.within(1, 70), outputs = in.within(1, 70), slots = in.within(1, 4), ranks = in.within(1, 9);
  LowRank matrices = low_rank_matrices(columns, outputs, slots, ranks, dtype);
  for (int64_t part = in.within(0, 4); part > 0; part--) {
    const int64_t start = in.within(0, outputs - 1), rows = in.near(1, outputs - start);
    const int64_t room = slots * ranks * element;
    const Memory down = in.memory(room * columns), up = in.memory(room * std::max<int64_t>(rows, 0));
    add_low_rank_part(matrices, start, rows, down, up, in.memory(slots * 4));
  }
  const int64_t tokens = in.within(0, 140), width = tokens * element;
  const RowGroups groups(in.numbers(tokens, -1, slots - 1).data(), tokens, in.near(1, slots));
  check_groups(matrices, groups);
  if (groups.order().empty()) return;
  LowRankArgs args{};
  args.y = take<void>(in.memory(width * outputs), width * outputs, "the output");
  args.x = take<const void>(in.memory(width * columns), width * columns, "x");
  args.matrices = &matrices;
  args.order = groups.order().data();
  args.runs = groups.runs().data();
  args.num_runs = (int64_t)groups.runs().size();
  std::vector<float> inner(groups.order().size() * inner_floats(matrices));
  args.inner = inner.data();
  with_team((int)in.within(1, 3), [&](Team &team, int) { active_low_rank().add(args, team); });
}

void attention(Input &in) {
  const Dtype dtype = in.flag() ? Dtype::bfloat16 : Dtype::float32;
  const int kv_heads = (int)in.within(1, 3), heads = kv_heads * (int)in.within(1, 4);
  const int head_dim = in.rarely() ? (int)in.near(1, 1024) : 2 * (int)in.within(1, 40), layers = (int)in.within(1, 2);
  const KvPool pool = pool_of(in, layers, kv_heads, head_dim, dtype);
  if (in.flag()) pool.copy_block((int)in.near(0, pool.num_blocks - 1), (int)in.near(0, pool.num_blocks - 1));
  const int64_t tokens = in.within(0, 60), row = int64_t(heads + 2 * kv_heads) * head_dim * (dtype == Dtype::bfloat16 ? 2 : 4);
  const int64_t out_row = int64_t(heads) * head_dim * (dtype == Dtype::bfloat16 ? 2 : 4);
  const Batch layout(in, pool, tokens);
  const int threads = (int)in.within(1, 4), window = in.flag() ? (int)in.within(1, 200) : 0;
  const AttentionPlan &plan = attention_plan(
      layout.view(), {heads, kv_heads, pool.layout.block_size, pool.num_blocks, window, threads, tokens});
  if (tokens == 0) return;
  AttentionArgs args{};
  args.queries = take<const void>(in.memory(tokens * row), tokens * row, "the queries");
  args.out = take<void>(in.memory(tokens * out_row), tokens * out_row, "the output");
  args.kv = pool.layer((int)in.near(0, layers - 1));
  args.kv_dtype = pool.dtype;
  args.dtype = dtype;
  args.num_heads = heads;
  args.kv_heads = kv_heads;
  args.head_dim = head_dim;
  args.block_size = pool.layout.block_size;
  args.kv_layers = layers;
  args.query_stride = int64_t(heads + 2 * kv_heads) * head_dim;
  args.scale = in.number();
  args.window = window;
  args.query_starts = plan.query_starts.data();
  args.context_lens = plan.context_lens.data();
  args.block_tables = plan.block_tables.data();
  args.max_blocks = plan.max_blocks;
  const AttentionMemory memory = attention_memory(plan, args, threads);
  with_team(threads, [&](Team &team, int thread) { run_attention(plan, args, memory, team, thread); });
}

void experts(Input &in) {
  const Dtype dtype = in.flag() ? Dtype::bfloat16 : Dtype::float32;
  const int64_t hidden = 32 * in.within(1, 2), inner = 32 * in.within(1, 2), count = in.within(1, 5);
  Experts layer(hidden, inner, dtype, count);
  for (int64_t index = 0; index < count; index++)
    layer.set(in.rarely() ? in.near(0, count - 1) : index, matrix_of(in, 2 * inner, hidden), matrix_of(in, hidden, inner));
  const int64_t tokens = in.within(1, 12), top_k = in.within(1, count);
  const int64_t choices = tokens * top_k * 4, bytes = tokens * layer.row_bytes();
  const Memory logits = in.memory(tokens * count * 4), ids = in.memory(choices), weights = in.memory(choices);
  if (in.flag())
    route({take<int32_t>(ids, choices, "the chosen experts"), take<float>(weights, choices, "their weights"),
           take<const float>(logits, tokens * count * 4, "the scores of experts"), tokens, count, top_k, in.flag()});
  const ExpertsBatch batch{take<void>(in.memory(bytes), bytes, "the output"), take<const void>(in.memory(bytes), bytes, "x"),
                           take<const int32_t>(ids, choices, "the chosen experts"),
                           take<const float>(weights, choices, "their weights"), tokens, top_k};
  if (in.flag()) return layer.run(batch, (int)in.within(1, 2));
  layer.begin(batch);
  std::vector<int64_t> some;
  for (int64_t index = in.within(0, 6); index > 0; index--) some.push_back(in.near(0, count - 1));
  layer.compute(some, 1);
  layer.finish(1);
}

void words(Input &in) {
  std::vector<TokenId> triples;
  for (int64_t left = in.within(0, 12); left > 0; left--)
    for (int part = 0; part < 3; part++) triples.push_back((TokenId)in.near(0, 12));
  std::vector<int64_t> bytes(256);
  for (int byte = 0; byte < 256; byte++) bytes[byte] = byte % (in.within(1, 13) + 1) - 1;
  const WordMerger merger(bytes, MergeTable(triples.data(), triples.size() / 3), {{"ab", 1}});
  WordMemory memory(2);
  const std::string text = in.rest();
  for (size_t at = 0; at < text.size();) {
    const size_t size = std::min<size_t>(text.size() - at, 1 + (uint8_t)text[at] % 70);
    const std::vector<char> word(text.begin() + at, text.begin() + at + size);
    std::vector<TokenId> tokens(size + WordMemory::kTokens);
    const bool remembered = size <= WordMemory::kBytes;
    const WordMemory::Key key = remembered ? memory.key_of(word.data(), size, word.size()) : WordMemory::Key{};
    if (!remembered || memory.recall(key, tokens.data()) == nullptr) {
      const TokenId *end = merger.encode(word.data(), size, tokens.data());
      if (end > tokens.data() + size) std::abort();
      if (remembered) memory.keep(key, tokens.data(), end - tokens.data());
    }
    at += size;
  }
  unsigned char digest[32];
  blake2b(reinterpret_cast<const unsigned char *>(text.data()), text.size(), digest, sizeof digest);
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

// What decides sizes and numbers stands at the end of an input, where it is read from, backwards; and it is mostly one byte
// that makes a number one too many. Half of all changes are such a byte.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned int seed) {
  static constexpr uint8_t beyond[] = {242, 245, 249, 252, 255};
  if (size < 2 || seed % 2 == 0) return LLVMFuzzerMutate(data, size, most);
  const unsigned draw = seed / 2 * 2654435761u;
  const size_t last = std::min<size_t>(size - 1, 192);
  for (unsigned change = 0; change <= draw % 3; change++) {
    const unsigned next = (draw >> 3) * (change + 1) * 2246822519u;
    const size_t at = size - 1 - (next >> 8) % last;
    data[at] = (next & 7) < 5 ? beyond[next & 7] : (uint8_t)(next >> 24);
  }
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  Input in(data + 1, size - 1);
  try {
    switch (data[0] % 9) {
      case 0: linear(in); break;
      case 1: attention(in); break;
      case 2: experts(in); break;
      case 3: words(in); break;
      case 4: in.only_one_matrix_is_odd(); experts(in); break;
      case 5: in.only_one_matrix_is_odd(); forward(in); break;
      case 6: adapters(in); break;
      default: forward(in);
    }
  } catch (const std::invalid_argument &) {
  } catch (const std::out_of_range &) {
  }
  return 0;
}
