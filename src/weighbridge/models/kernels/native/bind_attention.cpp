#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <omp.h>

#include "attention_plan.h"
#include "kv_pool.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

static constexpr int64_t smallest_parallel_macs = 1 << 17;
// Work of about two milliseconds: worth letting other Python threads run meanwhile.
static constexpr int64_t smallest_macs_without_gil = 1 << 27;

static void run_plan(const AttentionKernels &kernels, const AttentionPlan &plan, const AttentionArgs &args,
                     int threads) {
  static thread_local Buffer scratch_buffer, partial_buffer;
  const int64_t scratch_bytes = (kernels.scratch_bytes(args) + 63) / 64 * 64;
  char *scratch = scratch_buffer.reserve(scratch_bytes * threads);
  float *partials = reinterpret_cast<float *>(
      partial_buffer.reserve(plan.num_partials * kernels.partial_floats(args) * (int64_t)sizeof(float)));
  const int64_t items = (int64_t)plan.items.size(), merges = (int64_t)plan.merges.size();
  const auto run = [&](int64_t i, int64_t stride, char *mine) {
    const AttentionItem *following = i + stride < items ? &plan.items[i + stride] : nullptr;
    kernels.run(args, plan.items[i], following, partials, mine);
  };
  if (threads < 2 || plan.pairs * args.head_dim < smallest_parallel_macs) {
    for (int64_t i = 0; i < items; i++) run(i, 1, scratch);
    for (int64_t i = 0; i < merges; i++) kernels.merge(args, plan.merges[i], partials);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    char *mine = scratch + omp_get_thread_num() * scratch_bytes;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < items; i++) run(i, threads, mine);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < merges; i++) kernels.merge(args, plan.merges[i], partials);
  }
}

static void paged_attention(uintptr_t out, uintptr_t qkv, int64_t tokens, const KvPool &pool, int layer,
                            Int32Row query_starts, Int32Row context_lens, Int32Table block_tables, int num_heads,
                            float scale, int window, int threads) {
  const int64_t sequences = (int64_t)context_lens.shape(0);
  if ((int64_t)query_starts.shape(0) != sequences + 1 || (int64_t)block_tables.shape(0) != sequences)
    throw std::invalid_argument("batch layout: query_starts, context_lens and block_tables disagree in length");
  if (!(scale > 0)) throw std::invalid_argument("the scale of attention scores must be positive");
  const KvLayout &kv = pool.layout;
  const LayoutView view{query_starts.data(), context_lens.data(), block_tables.data(), sequences,
                        (int64_t)block_tables.shape(1)};
  const AttentionPlan &plan = attention_plan(
      view, {num_heads, kv.kv_heads, kv.block_size, pool.num_blocks, window, threads, tokens});
  AttentionArgs args{};
  args.queries = reinterpret_cast<const void *>(qkv);
  args.out = reinterpret_cast<void *>(out);
  args.kv = pool.layer(layer);
  args.dtype = pool.dtype;
  args.num_heads = num_heads;
  args.kv_heads = kv.kv_heads;
  args.head_dim = kv.head_dim;
  args.block_size = kv.block_size;
  args.query_stride = int64_t(num_heads + 2 * kv.kv_heads) * kv.head_dim;
  args.scale = scale;
  args.window = window;
  args.query_starts = plan.query_starts.data();
  args.context_lens = plan.context_lens.data();
  args.block_tables = plan.block_tables.data();
  args.max_blocks = plan.max_blocks;
  const AttentionKernels &kernels = active_attention();
  if (2 * plan.pairs * kv.head_dim < smallest_macs_without_gil) {
    run_plan(kernels, plan, args, threads);
  } else {
    nb::gil_scoped_release release;
    run_plan(kernels, plan, args, threads);
  }
}

void bind_attention(nb::module_ &module) {
  nb::class_<KvPool>(module, "KvPool")
      .def(nb::init<uintptr_t, int, int, int, int, int, int>(), nb::arg("address"), nb::arg("layers"),
           nb::arg("num_blocks"), nb::arg("block_size"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("dtype"))
      .def("copy_block", &KvPool::copy_block);
  module.def("paged_attention", &paged_attention);
}
