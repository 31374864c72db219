#include "attention_plan.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>

namespace weighbridge {

static constexpr int smallest_part = 256;     // keys: below, merging costs more than the second core brings
static constexpr int items_per_thread = 4;    // enough to even out the ends

static bool same(const std::vector<int32_t> &ours, const int32_t *theirs, int64_t count) {
  return (int64_t)ours.size() == count && std::equal(ours.begin(), ours.end(), theirs);
}

bool AttentionPlan::matches(const LayoutView &layout, const AttentionShape &shape) const {
  return shape_ == shape && max_blocks == layout.max_blocks &&
         same(query_starts, layout.query_starts, layout.sequences + 1) &&
         same(context_lens, layout.context_lens, layout.sequences) &&
         same(block_tables, layout.block_tables, layout.sequences * layout.max_blocks);
}

void AttentionPlan::check(const LayoutView &layout) const {
  const auto fail = [](int64_t sequence, const std::string &what) {
    throw std::invalid_argument("batch layout, sequence " + std::to_string(sequence) + ": " + what);
  };
  if (query_starts[0] < 0 || query_starts[layout.sequences] > shape_.tokens)
    throw std::invalid_argument("batch layout: query_starts points outside the " + std::to_string(shape_.tokens) +
                                " rows of the tensors");
  for (int64_t s = 0; s < layout.sequences; s++) {
    const int64_t queries = (int64_t)query_starts[s + 1] - query_starts[s], context = context_lens[s];
    if (queries < 0) fail(s, "query_starts decreases");
    if (context < queries) fail(s, "context_lens is less than its number of query rows");
    const int64_t blocks = (context + shape_.block_size - 1) / shape_.block_size;
    if (blocks > max_blocks) fail(s, "its context needs more blocks than block_tables has columns");
    for (int64_t b = 0; b < blocks; b++) {
      const int32_t id = block_tables[s * max_blocks + b];
      if (id < 0 || id >= shape_.num_blocks)
        fail(s, "block id " + std::to_string(id) + " is outside the pool of " + std::to_string(shape_.num_blocks));
    }
  }
}

// (query row, key) pairs of one head.
int64_t AttentionPlan::cost(int64_t s) const {
  const int64_t queries = query_starts[s + 1] - query_starts[s], context = context_lens[s];
  const int64_t all = queries * context - queries * (queries - 1) / 2;
  return shape_.window > 0 ? std::min(all, queries * shape_.window) : all;
}

AttentionPlan::AttentionPlan(const LayoutView &layout, const AttentionShape &shape)
    : query_starts(layout.query_starts, layout.query_starts + layout.sequences + 1),
      context_lens(layout.context_lens, layout.context_lens + layout.sequences),
      block_tables(layout.block_tables, layout.block_tables + layout.sequences * layout.max_blocks),
      max_blocks(layout.max_blocks),
      shape_(shape) {
  check(layout);
  const int heads = shape.num_heads / shape.kv_heads;
  std::vector<int> order(layout.sequences);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [this](int a, int b) { return cost(a) > cost(b); });
  for (int s : order) pairs += cost(s) * shape.num_heads;
  const int64_t target = shape.threads > 1 ? pairs / (shape.threads * items_per_thread) + 1 : pairs + 1;
  for (int s : order) {
    const int rows = (query_starts[s + 1] - query_starts[s]) * heads;
    for (int head = 0; head < shape.kv_heads; head++)
      for (int tile = (rows + tile_rows - 1) / tile_rows - 1; tile >= 0; tile--)  // the last sees the most keys
        add_tile(s, head, tile * tile_rows, std::min(rows, (tile + 1) * tile_rows), target);
  }
}

void AttentionPlan::add_tile(int s, int kv_head, int row_begin, int row_end, int64_t target) {
  const int heads = shape_.num_heads / shape_.kv_heads;
  const int first_position = context_lens[s] - (query_starts[s + 1] - query_starts[s]);
  const int key_end = first_position + (row_end - 1) / heads + 1;
  int key_begin = shape_.window > 0 ? std::max(0, first_position + row_begin / heads - shape_.window + 1) : 0;
  key_begin -= key_begin % shape_.block_size;
  const int keys = key_end - key_begin;
  const int64_t wanted = (int64_t(row_end - row_begin) * keys + target - 1) / target;
  const int parts = (int)std::min<int64_t>(wanted, keys / smallest_part);
  if (parts < 2) {
    items.push_back({s, kv_head, row_begin, row_end, key_begin, key_end, -1});
    return;
  }
  const int part_keys = ((keys + parts - 1) / parts + group_keys - 1) / group_keys * group_keys;
  const int first = num_partials;
  for (int begin = key_begin; begin < key_end; begin += part_keys)
    items.push_back({s, kv_head, row_begin, row_end, begin, std::min(key_end, begin + part_keys), num_partials++});
  merges.push_back({s, kv_head, row_begin, row_end, first, num_partials - first});
}

const AttentionPlan &attention_plan(const LayoutView &layout, const AttentionShape &shape) {
  static thread_local std::vector<std::unique_ptr<AttentionPlan>> plans;
  for (auto plan = plans.begin(); plan != plans.end(); ++plan)
    if ((*plan)->matches(layout, shape)) {
      // The latest: a pass keeps the plans of all its windows, and the next of them may push out the oldest.
      std::rotate(plan, plan + 1, plans.end());
      return *plans.back();
    }
  auto plan = std::make_unique<AttentionPlan>(layout, shape);
  if (plans.size() == plans_kept) plans.erase(plans.begin());
  plans.push_back(std::move(plan));
  return *plans.back();
}

}  // namespace weighbridge
