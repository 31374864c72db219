// Running a plan on a team, and the memory it needs.
#pragma once

#include "attention_plan.h"
#include "parallel.h"
#include "team.h"

namespace weighbridge {

// Scratch of each thread and partial results, reserved before a parallel region and reused by the calling thread.
struct AttentionMemory {
  char *scratch;
  int64_t scratch_bytes;  // of one thread
  float *partials;
};

// Grows the calling thread's buffers to what `plan` needs on `threads` threads; `args` gives the model's shape.
AttentionMemory attention_memory(const AttentionPlan &plan, const AttentionArgs &args, int threads);

// On every thread of the team, as `thread`; returns when all of `args.out` is written.
void run_attention(const AttentionPlan &plan, const AttentionArgs &args, const AttentionMemory &memory, Team &team,
                   int thread);

}  // namespace weighbridge
