#include "attention_run.h"

namespace weighbridge {

AttentionMemory attention_memory(const AttentionPlan &plan, const AttentionArgs &args, int threads) {
  static thread_local Buffer scratch_buffer, partial_buffer;
  const AttentionKernels &kernels = active_attention();
  const int64_t scratch_bytes = (kernels.scratch_bytes(args) + 63) / 64 * 64;
  const int64_t partial_bytes = plan.num_partials * kernels.partial_floats(args) * (int64_t)sizeof(float);
  return {scratch_buffer.reserve(scratch_bytes * threads), scratch_bytes,
          reinterpret_cast<float *>(partial_buffer.reserve(partial_bytes))};
}

void run_attention(const AttentionPlan &plan, const AttentionArgs &args, const AttentionMemory &memory, Team &team,
                   int thread) {
  const AttentionKernels &kernels = active_attention();
  const int64_t items = (int64_t)plan.items.size(), merges = (int64_t)plan.merges.size();
  char *scratch = memory.scratch + thread * memory.scratch_bytes;
  for (int64_t i; (i = team.claim()) < items;) {
    const AttentionItem *following = i + team.size() < items ? &plan.items[i + team.size()] : nullptr;
    kernels.run(args, plan.items[i], following, memory.partials, scratch);
  }
  team.barrier();
  if (merges == 0) return;
  for (int64_t i; (i = team.claim()) < merges;) kernels.merge(args, plan.merges[i], memory.partials);
  team.barrier();
}

}  // namespace weighbridge
