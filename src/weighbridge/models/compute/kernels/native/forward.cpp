#include "forward.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "linear_checks.h"
#include "low_rank_checks.h"

namespace weighbridge {

namespace {

void produce_norm(const void *args, int64_t begin, int64_t end) {
  active_elementwise().norm(*static_cast<const NormArgs *>(args), begin, end);
}

void produce_silu(const void *args, int64_t begin, int64_t end) {
  active_elementwise().silu_mul(*static_cast<const SiluArgs *>(args), begin, end);
}

// Tokens that go through the two halves of a feed-forward at a time: their activations are the widest of all by far. A
// multiple of `smallest_block`, in which wide matrices multiply; adapters have the rows of the whole batch in order.
constexpr int64_t feed_forward_block = 4 * smallest_block;

int64_t feed_forward_tokens(int64_t tokens, bool adapted) {
  return adapted ? tokens : std::min(tokens, feed_forward_block);
}

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 4; }

void check_range(const int32_t *values, int64_t count, int64_t limit, const char *what) {
  for (int64_t i = 0; i < count; i++)
    if (values[i] < 0 || values[i] >= limit)
      throw std::out_of_range(std::string(what) + " " + std::to_string(values[i]) + " is outside 0.." +
                              std::to_string(limit - 1));
}

void check_projection(const Projection &projection, const char *what, int64_t rows, int64_t columns, Dtype dtype) {
  check_shape(projection.matrix, what, rows, columns, dtype);
  const LowRank &added = projection.added;
  if (added.count > 0 && (added.outputs != rows || added.columns != columns || added.dtype != dtype))
    throw std::invalid_argument(std::string("what adapters add to ") + what + " is of another shape");
}

}  // namespace

// Activations of one batch, one layer at a time: all of its tokens, or `part` of them. What a feed-forward makes lies
// where attention was.
struct Forward::Workspace {
  float *residual;   // [tokens, hidden]
  char *hidden;      // [tokens, hidden]: behind a norm
  char *projected;   // [tokens, hidden]: added to the residual by the next norm
  char *qkv;         // [tokens, (heads + 2 kv heads) * head_dim]
  char *gate_up;     // [part, 2 intermediate]
  char *attended;    // [tokens, heads * head_dim]
  char *gated;       // [part, intermediate]
  uint8_t *scratch;  // activations as a linear layer reads them
  float *inner;      // what the first matrices of adapters make of the rows of a layer's input
};

// One pass as one thread sees it: every method is called by all threads of the team.
struct Forward::Pass {
  const Forward &model;
  const ForwardBatch &batch;
  const KvPool &pool;
  const Workspace &work;
  const std::vector<const AttentionPlan *> &plans;
  const std::vector<AttentionMemory> &memories;
  Team &team;
  const int thread;
  int64_t tokens;
  const RowGroups *groups;           // of the tokens
  const RowGroups *const selected;   // of those that get logits

  // body(begin, end) over all rows, a few at a time; ends the phase.
  template <class Body>
  void rows(int64_t count, const Body &body) {
    const int64_t share = claim_size(count, team);
    for (int64_t begin; (begin = team.claim(share)) < count;) body(begin, std::min(begin + share, count));
    team.barrier();
  }

  void linear(void *out, const PackedMatrix &matrix, const void *x, Producer producer, int64_t count) {
    const LinearArgs args{out, x, model.shape_.dtype, count, matrix, work.scratch, block_tokens(matrix, count),
                          producer};
    active_linear().linear(args, team);
  }

  // `count` tokens; where adapters add something, all of them.
  void project(void *out, const Projection &projection, const void *x, Producer producer, int64_t count) {
    linear(out, projection.matrix, x, producer, count);
    if (groups == nullptr || projection.added.count == 0) return;
    const auto &runs = groups->runs();
    const LowRankArgs args{out, x, &projection.added, groups->order().data(), runs.data(), (int64_t)runs.size(),
                           work.inner};
    active_low_rank().add(args, team);
  }

  // From the token `begin` on; null: nothing is added.
  NormArgs norm_of(const float *weight, const char *added, int64_t begin = 0) const {
    const ModelShape &shape = model.shape_;
    const int64_t skipped = begin * shape.hidden * bytes_of(shape.dtype);
    return {work.hidden + skipped,
            work.residual + begin * shape.hidden,
            added == nullptr ? nullptr : added + skipped,
            weight,
            shape.dtype,
            shape.hidden,
            shape.eps};
  }

  void embed() {
    if (model.weights_.embedding == nullptr) {
      const ReadRowsArgs read{work.residual, batch.token_ids, model.weights_.packed_embedding};
      return rows(tokens, [&](int64_t begin, int64_t end) { active_linear().read_rows(read, begin, end); });
    }
    const GatherArgs gather{work.residual,      model.weights_.embedding, Dtype::float32, model.shape_.dtype,
                            batch.token_ids, model.shape_.hidden};
    rows(tokens, [&](int64_t begin, int64_t end) { active_elementwise().gather_rows(gather, begin, end); });
  }

  void attend(int index) {
    const LayerWeights &layer = model.layers_[index];
    const ModelShape &shape = model.shape_;
    const int64_t width = int64_t(shape.num_heads) * shape.head_dim * bytes_of(shape.dtype);
    RopeArgs rope{};
    rope.qkv = work.qkv;
    rope.kv = pool.layer(index);
    rope.dtype = shape.dtype;
    rope.kv_dtype = pool.dtype;
    rope.num_heads = shape.num_heads;
    rope.kv_heads = shape.kv_heads;
    rope.head_dim = shape.head_dim;
    rope.block_size = pool.layout.block_size;
    rope.kv_layers = pool.layout.layers;
    rope.positions = batch.positions;
    rope.slots = batch.slots;
    rope.cos_sin = layer.rotates ? model.weights_.cos_sin : nullptr;
    rope.q_norm = layer.q_norm;
    rope.k_norm = layer.k_norm;
    rope.eps = shape.eps;
    rows(batch.real_tokens,
         [&](int64_t begin, int64_t end) { active_elementwise().rope_and_write(rope, begin, end); });
    run_attention(*plans[index], model.attention_args(work, pool, *plans[index], index), memories[index], team,
                  thread);
    if (batch.real_tokens < batch.tokens) {
      if (thread == 0)
        std::memset(work.attended + batch.real_tokens * width, 0, (batch.tokens - batch.real_tokens) * width);
      team.barrier();
    }
  }

  // Behind the last attention nothing mixes tokens: go on with the rows that get logits.
  void select_rows() {
    const ModelShape &shape = model.shape_;
    const int64_t width = int64_t(shape.num_heads) * shape.head_dim * bytes_of(shape.dtype);
    if (thread == 0)
      for (int64_t i = 0; i < batch.num_rows; i++) {  // rows ascend, so none is overwritten before it moved
        const int64_t row = batch.rows[i];
        if (row == i) continue;
        std::memcpy(work.attended + i * width, work.attended + row * width, width);
        std::memcpy(work.residual + i * shape.hidden, work.residual + row * shape.hidden,
                    shape.hidden * sizeof(float));
      }
    tokens = batch.num_rows;
    groups = selected;
    team.barrier();
  }

  // What the output matrix read, of the rows that are asked for it.
  void keep_states() {
    const int64_t width = model.shape_.hidden * bytes_of(model.shape_.dtype);
    if (thread == 0)
      for (int64_t i = 0; i < batch.num_states; i++)
        std::memcpy(static_cast<char *>(batch.states) + i * width, work.hidden + batch.state_rows[i] * width, width);
  }

  void feed_forward(const LayerWeights &layer) {
    const ModelShape &shape = model.shape_;
    const int64_t most = feed_forward_tokens(tokens, groups != nullptr);
    const int64_t width = shape.hidden * bytes_of(shape.dtype);
    const SiluArgs silu{work.gated, work.gate_up, shape.dtype, shape.intermediate};
    for (int64_t begin = 0; begin < tokens; begin += most) {
      const int64_t count = std::min(most, tokens - begin);
      const NormArgs norm = norm_of(layer.post_attention_norm, work.projected, begin);
      project(work.gate_up, layer.gate_up, work.hidden + begin * width, {produce_norm, &norm}, count);
      project(work.projected + begin * width, layer.down, work.gated, {produce_silu, &silu}, count);
    }
  }

  void run() {
    embed();
    const int last = (int)model.layers_.size() - 1;
    for (int index = 0; index <= last; index++) {
      const LayerWeights &layer = model.layers_[index];
      const NormArgs norm = norm_of(layer.input_norm, index == 0 ? nullptr : work.projected);
      project(work.qkv, layer.qkv, work.hidden, {produce_norm, &norm}, tokens);
      attend(index);
      if (index == last && batch.num_rows < batch.tokens) {
        select_rows();
        if (tokens == 0) return;
      }
      project(work.projected, layer.output, work.attended, {nullptr, nullptr}, tokens);
      feed_forward(layer);
    }
    const NormArgs norm = norm_of(model.weights_.final_norm, work.projected);
    linear(batch.logits, model.weights_.lm_head, work.hidden, {produce_norm, &norm}, tokens);
    keep_states();
  }
};

AttentionArgs Forward::attention_args(const Workspace &work, const KvPool &pool, const AttentionPlan &plan,
                                      int index) const {
  AttentionArgs args{};
  args.queries = work.qkv;
  args.out = work.attended;
  args.kv = pool.layer(index);
  args.dtype = shape_.dtype;
  args.kv_dtype = pool.dtype;
  args.num_heads = shape_.num_heads;
  args.kv_heads = shape_.kv_heads;
  args.head_dim = shape_.head_dim;
  args.block_size = pool.layout.block_size;
  args.kv_layers = pool.layout.layers;
  args.query_stride = int64_t(shape_.num_heads + 2 * shape_.kv_heads) * shape_.head_dim;
  args.scale = shape_.scale;
  args.window = layers_[index].window;
  args.query_starts = plan.query_starts.data();
  args.context_lens = plan.context_lens.data();
  args.block_tables = plan.block_tables.data();
  args.max_blocks = plan.max_blocks;
  return args;
}

Forward::Forward(const ModelShape &shape, const ModelWeights &weights) : shape_(shape), weights_(weights) {
  check_shape(weights.lm_head, "the output matrix", weights.lm_head.rows, shape.hidden, shape.dtype);
  if (weights.embedding == nullptr)
    check_shape(weights.packed_embedding, "the embedding", weights.vocabulary, shape.hidden, shape.dtype);
}

void Forward::add_layer(const LayerWeights &layer) {
  const int64_t queries = int64_t(shape_.num_heads) * shape_.head_dim;
  const int64_t keys = int64_t(shape_.kv_heads) * shape_.head_dim;
  check_projection(layer.qkv, "qkv", queries + 2 * keys, shape_.hidden, shape_.dtype);
  check_projection(layer.output, "the output of attention", shape_.hidden, queries, shape_.dtype);
  check_projection(layer.gate_up, "gate and up", 2 * int64_t(shape_.intermediate), shape_.hidden, shape_.dtype);
  check_projection(layer.down, "down", shape_.hidden, shape_.intermediate, shape_.dtype);
  // A pass holds a plan for each size of window, and no more are kept.
  std::vector<int> windows{layer.window};
  for (const LayerWeights &other : layers_)
    if (std::find(windows.begin(), windows.end(), other.window) == windows.end()) windows.push_back(other.window);
  if (windows.size() > plans_kept) throw std::invalid_argument("the layers have too many sizes of windows");
  layers_.push_back(layer);
}

void Forward::check(const ForwardBatch &batch, const KvPool &pool) const {
  const KvLayout &kv = pool.layout;
  if (kv.kv_heads != shape_.kv_heads || kv.head_dim != shape_.head_dim ||
      pool.layers != (int)layers_.size())
    throw std::invalid_argument("this KV cache was made for another model");
  check_range(batch.token_ids, batch.tokens, weights_.vocabulary, "token id");
  check_range(batch.positions, batch.real_tokens, weights_.positions, "position");
  check_range(batch.slots, batch.real_tokens, (int64_t)pool.num_blocks * kv.block_size, "slot");
  check_range(batch.rows, batch.num_rows, batch.tokens, "row");
  for (int64_t i = 1; i < batch.num_rows; i++)
    if (batch.rows[i] <= batch.rows[i - 1]) throw std::invalid_argument("the rows of a batch must ascend");
  check_range(batch.state_rows, batch.num_states, batch.num_rows, "state row");
  if (batch.groups == nullptr) return;
  if (batch.groups->rows() != batch.tokens) throw std::invalid_argument("the adapters are those of another batch");
  for (const Projection *projection : projections()) check_groups(projection->added, *batch.groups);
}

std::vector<const Projection *> Forward::projections() const {
  std::vector<const Projection *> all;
  for (const LayerWeights &layer : layers_)
    for (const Projection *projection : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
      all.push_back(projection);
  return all;
}

Forward::Workspace Forward::lay_out(const ForwardBatch &batch) {
  const int64_t element = bytes_of(shape_.dtype), tokens = batch.tokens;
  const int64_t heads = shape_.num_heads * int64_t(shape_.head_dim);
  const int64_t qkv = heads + 2 * int64_t(shape_.kv_heads) * shape_.head_dim;
  int64_t scratch = 0, inner = 0;
  const auto needs = [&](const PackedMatrix &matrix, int64_t rows) {
    scratch = std::max(scratch, block_tokens(matrix, rows) * scratch_bytes(matrix));
  };
  for (const Projection *projection : projections()) {
    needs(projection->matrix, tokens);
    inner = std::max(inner, inner_floats(projection->added));
  }
  needs(weights_.lm_head, tokens);
  const int64_t adapted = batch.groups == nullptr ? 0 : (int64_t)batch.groups->order().size();
  const int64_t part = feed_forward_tokens(tokens, batch.groups != nullptr);
  const int64_t sizes[] = {tokens * shape_.hidden * (int64_t)sizeof(float),
                           tokens * shape_.hidden * element,
                           tokens * shape_.hidden * element,
                           std::max(tokens * qkv, part * 2 * shape_.intermediate) * element,
                           std::max(tokens * heads, part * shape_.intermediate) * element,
                           scratch,
                           adapted * inner * (int64_t)sizeof(float)};
  const auto parts = memory_.parts(sizes);
  return {reinterpret_cast<float *>(parts[0]), parts[1], parts[2], parts[3], parts[3], parts[4], parts[4],
          reinterpret_cast<uint8_t *>(parts[5]), reinterpret_cast<float *>(parts[6])};
}

void Forward::run(const ForwardBatch &batch, const KvPool &pool, int threads) {
  check(batch, pool);
  const Workspace work = lay_out(batch);
  std::vector<const AttentionPlan *> plans;
  std::vector<AttentionMemory> memories;
  for (const LayerWeights &layer : layers_)
    plans.push_back(&attention_plan(batch.layout, {shape_.num_heads, shape_.kv_heads, pool.layout.block_size,
                                                   pool.num_blocks, layer.window, threads, batch.real_tokens}));
  // The buffers may move while they grow: once through all plans, then take the addresses.
  for (int pass = 0; pass < 2; pass++) {
    memories.clear();
    for (size_t i = 0; i < layers_.size(); i++)
      memories.push_back(attention_memory(*plans[i], attention_args(work, pool, *plans[i], (int)i), threads));
  }
  std::optional<RowGroups> selected;
  if (batch.groups != nullptr) selected.emplace(batch.groups->select(batch.rows, batch.num_rows));
  const RowGroups *const behind = selected ? &*selected : nullptr;
  with_team(threads, [&](Team &team, int thread) {
    Pass{*this, batch, pool, work, plans, memories, team, thread, batch.tokens, batch.groups, behind}.run();
  });
}

}  // namespace weighbridge
