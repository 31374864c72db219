#include "row_groups.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace weighbridge {

// Rows of the longest run: their activations stay in the second-level cache while an adapter's matrices pass.
static constexpr int32_t longest_run = 64;

RowGroups::RowGroups(const int32_t *slots, int64_t count, int64_t limit) : slots_(slots, slots + count), limit_(limit) {
  for (int64_t row = 0; row < count; row++) {
    if (slots[row] >= limit)
      throw std::out_of_range("slot " + std::to_string(slots[row]) + " is outside 0.." + std::to_string(limit - 1));
    if (slots[row] >= 0) order_.push_back((int32_t)row);
  }
  std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return slots_[a] < slots_[b]; });
  const int32_t total = (int32_t)order_.size();
  for (int32_t begin = 0, end; begin < total; begin = end) {
    const int32_t slot = slots_[order_[begin]];
    end = begin + 1;
    while (end < total && end - begin < longest_run && slots_[order_[end]] == slot) end++;
    runs_.push_back({slot, begin, end});
  }
}

RowGroups RowGroups::select(const int32_t *rows, int64_t count) const {
  std::vector<int32_t> chosen(count);
  for (int64_t i = 0; i < count; i++) chosen[i] = slots_[rows[i]];
  return RowGroups(chosen.data(), count, limit_);
}

}  // namespace weighbridge
