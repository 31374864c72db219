// Cores that each thread of a parallel region keeps to.
//
// Threads that wait for each other at a barrier must not meet on one core: they would run in turn, and the kernel
// moves one away only after some ticks. Anything else that runs for a moment is enough to push two together.
#pragma once

#include <vector>

namespace weighbridge {

// From now on thread i of a region keeps to the cores seats[i]; the calling thread, which will be thread 0, at once.
// Others take their seat in the next region of these kernels, so threads that the runtime starts later get one too.
// Nothing happens where the system has no such thing.
void seat_threads(const std::vector<std::vector<int>> &seats);

// Called by thread `thread` in a region. Thread 0 belongs to the caller and stays where it is.
void keep_seat(int thread);

}  // namespace weighbridge
