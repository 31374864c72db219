#include "seats.h"

#include <atomic>

#if defined(__linux__)
#include <sched.h>
#endif

namespace weighbridge {

using Seats = std::vector<std::vector<int>>;

static std::atomic<const Seats *> current{nullptr};
static thread_local const Seats *seated = nullptr;

static void sit(const std::vector<int> &cores) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores)
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);  // refused (cores taken away meanwhile): the thread stays where it is
#endif
}

void seat_threads(const Seats &seats) {
  if (seats.empty()) return;
  // A few words for each engine that starts: never freed, since any thread may be reading them.
  current.store(new Seats(seats), std::memory_order_release);
  sit(seats[0]);
}

void keep_seat(int thread) {
  const Seats *seats = current.load(std::memory_order_acquire);
  if (seats == seated || thread == 0) return;
  seated = seats;
  if (thread < (int)seats->size()) sit((*seats)[(size_t)thread]);
}

}  // namespace weighbridge
