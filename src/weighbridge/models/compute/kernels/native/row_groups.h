// The rows of a batch by the slot of the adapter that they go through, whichever order they lie in.
#pragma once

#include <cstdint>
#include <vector>

#include "low_rank.h"

namespace weighbridge {

class RowGroups {
 public:
  // `slots` [count]: below `limit`, or negative for rows that go through none. Throws std::out_of_range.
  RowGroups(const int32_t *slots, int64_t count, int64_t limit);

  // Of these rows alone, in their order, each inside the batch.
  RowGroups select(const int32_t *rows, int64_t count) const;

  int64_t rows() const { return (int64_t)slots_.size(); }
  int64_t limit() const { return limit_; }
  // Rows that have a slot, by slot, and the runs of those; long ones are cut, so that threads share them.
  const std::vector<int32_t> &order() const { return order_; }
  const std::vector<SlotRun> &runs() const { return runs_; }

 private:
  std::vector<int32_t> slots_, order_;
  std::vector<SlotRun> runs_;
  int64_t limit_;
};

}  // namespace weighbridge
