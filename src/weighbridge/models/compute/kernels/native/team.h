// The threads of one parallel region, between whose barriers work is taken piece by piece.
//
// A forward pass is some three hundred short phases. A fork and join for each, through the runtime, costs a
// thread that sleeps and is woken again whenever anything delays its partner; on a virtual machine that is
// 50 microseconds. Here threads wait by spinning for a moment and then by giving the core to whoever wants it,
// and pieces are claimed, not assigned: a thread that lost its core holds up the piece it has, nothing else.
#pragma once

#include <atomic>
#include <cstdint>

namespace weighbridge {

// Defined in team.cpp: kernel sources must not instantiate inline functions of their own (see kernels.h).
class Team {
 public:
  explicit Team(int size);

  int size() const;

  // The first of the next `count` pieces of this phase. Past the end: the phase has no work left.
  int64_t claim(int64_t count = 1);

  // Ends a phase: what any thread wrote before is seen by all, and claims start from 0 again.
  void barrier();

 private:
  const int size_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Pieces to claim at a time so that each thread claims about eight times.
int64_t claim_size(int64_t pieces, const Team &team);

}  // namespace weighbridge
