#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "attention_run.h"
#include "kv_pool.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

static constexpr int64_t smallest_parallel_macs = 1 << 17;
// Work of about two milliseconds: worth letting other Python threads run meanwhile.
static constexpr int64_t smallest_macs_without_gil = 1 << 27;

// `dtype` of queries and out, where it is not the cache's; `sinks` [num_heads] float32, or 0.
static void paged_attention(uintptr_t out, uintptr_t qkv, int64_t tokens, const KvPool &pool, int layer,
                            Int32Row query_starts, Int32Row context_lens, Int32Table block_tables, int num_heads,
                            float scale, int window, float softcap, uintptr_t sinks, int threads, int dtype) {
  const int64_t sequences = (int64_t)context_lens.shape(0);
  if ((int64_t)query_starts.shape(0) != sequences + 1 || (int64_t)block_tables.shape(0) != sequences)
    throw std::invalid_argument("batch layout: query_starts, context_lens and block_tables disagree in length");
  if (!(scale > 0)) throw std::invalid_argument("the scale of attention scores must be positive");
  if (!(softcap >= 0)) throw std::invalid_argument("the soft cap of attention scores must not be negative");
  const KvLayout &kv = pool.layout;
  if (num_heads < 1 || num_heads % kv.kv_heads != 0)
    throw std::invalid_argument("the heads of the queries must be a multiple of those of keys and values");
  const LayoutView view{query_starts.data(), context_lens.data(), block_tables.data(), sequences,
                        (int64_t)block_tables.shape(1)};
  const AttentionPlan &plan = attention_plan(
      view, {num_heads, kv.kv_heads, kv.block_size, pool.num_blocks, window, threads, tokens});
  AttentionArgs args{};
  args.queries = reinterpret_cast<const void *>(qkv);
  args.out = reinterpret_cast<void *>(out);
  args.kv = pool.layer(layer);
  args.dtype = dtype < 0 ? pool.dtype : (Dtype)dtype;
  args.kv_dtype = pool.dtype;
  args.num_heads = num_heads;
  args.kv_heads = kv.kv_heads;
  args.head_dim = kv.head_dim;
  args.block_size = kv.block_size;
  args.kv_layers = kv.layers;
  args.query_stride = int64_t(num_heads + 2 * kv.kv_heads) * kv.head_dim;
  args.scale = scale;
  args.window = window;
  args.softcap = softcap;
  args.sinks = reinterpret_cast<const float *>(sinks);
  args.query_starts = plan.query_starts.data();
  args.context_lens = plan.context_lens.data();
  args.block_tables = plan.block_tables.data();
  args.max_blocks = plan.max_blocks;
  const AttentionMemory memory = attention_memory(plan, args, threads);
  const bool alone = plan.pairs * kv.head_dim < smallest_parallel_macs;
  std::optional<nb::gil_scoped_release> released;
  if (2 * plan.pairs * kv.head_dim >= smallest_macs_without_gil) released.emplace();
  with_team(alone ? 1 : threads,
            [&](Team &team, int thread) { run_attention(plan, args, memory, team, thread); });
}

void bind_attention(nb::module_ &module) {
  nb::class_<KvPool>(module, "KvPool")
      .def(nb::init<uintptr_t, int64_t, int, int, int, int, int, int>(), nb::arg("address"), nb::arg("bytes"),
           nb::arg("layers"), nb::arg("num_blocks"), nb::arg("block_size"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("dtype"))
      .def("copy_block", &KvPool::copy_block);
  module.def("paged_attention", &paged_attention, nb::arg("out"), nb::arg("qkv"), nb::arg("tokens"), nb::arg("pool"),
             nb::arg("layer"), nb::arg("query_starts"), nb::arg("context_lens"), nb::arg("block_tables"),
             nb::arg("num_heads"), nb::arg("scale"), nb::arg("window"), nb::arg("softcap"), nb::arg("sinks"), nb::arg("threads"), nb::arg("dtype") = -1);
}
