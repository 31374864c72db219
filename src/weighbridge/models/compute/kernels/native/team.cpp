#include "team.h"

#include <sched.h>

namespace weighbridge {

// Turns of spinning before a thread offers its core to others: a few microseconds.
static constexpr int spins = 2000;

static inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

Team::Team(int size) : size_(size) {}

int Team::size() const { return size_; }

int64_t Team::claim(int64_t count) { return next_.fetch_add(count, std::memory_order_relaxed); }

void Team::barrier() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int turn = 0; phase_.load(std::memory_order_acquire) == phase; turn++) {
    if (turn < spins)
      pause_briefly();
    else
      sched_yield();
  }
}

int64_t claim_size(int64_t pieces, const Team &team) {
  const int64_t size = pieces / (8 * team.size());
  return size < 1 ? 1 : size;
}

}  // namespace weighbridge
