// The experts of one layer over the tokens that chose them. Nothing is padded to a capacity, nothing dropped.
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"
#include "parallel.h"

namespace weighbridge {

// Chooses `top_k` of `experts` for each token: softmax over all logits, then the largest, the first one on ties.
struct RouteArgs {
  int32_t *ids;         // [tokens, top_k], by falling weight
  float *weights;       // [tokens, top_k]
  const float *logits;  // [tokens, experts]
  int64_t tokens, experts, top_k;
  bool normalize;  // weights of a token add up to 1
};

void route(const RouteArgs &args);

struct ExpertsBatch {
  void *out;             // [tokens, hidden]: each token's experts, weighted and added in the order of `ids`
  const void *x;         // [tokens, hidden]
  const int32_t *ids;    // [tokens, top_k]
  const float *weights;  // [tokens, top_k]
  int64_t tokens, top_k;
};

// Gated feed-forward blocks of one shape: down(silu(gate(x)) * up(x)). The caller keeps the weights alive.
class Experts {
 public:
  Experts(int64_t hidden, int64_t intermediate, Dtype dtype, int64_t count);

  int64_t count() const { return int64_t(experts_.size()); }
  int64_t row_bytes() const { return hidden_ * (dtype_ == Dtype::bfloat16 ? 2 : 4); }

  // Experts may be set anew at any time between runs; one that was never set must not be chosen.
  void set(int64_t index, const PackedMatrix &gate_up, const PackedMatrix &down);

  // All of a batch. Throws std::out_of_range for an expert that is not there.
  void run(const ExpertsBatch &batch, int threads);

  // The same piece by piece, for experts that arrive one after the other: sort the tokens, compute some experts,
  // and once all that were chosen are computed, add up. The batch's memory must live that long.
  void begin(const ExpertsBatch &batch);
  void compute(const std::vector<int64_t> &experts, int threads);
  void finish(int threads);

 private:
  struct Expert {
    PackedMatrix gate_up{}, down{};
  };
  struct Workspace {
    char *gathered;  // [pairs of one expert, hidden]
    char *gate_up;   // [pairs of one expert, 2 intermediate]
    char *inner;     // [pairs of one expert, intermediate]
    char *outputs;   // [pairs, hidden]
  };
  void sort();
  void lay_out();
  void check(const std::vector<int64_t> &experts);
  void multiply(int64_t expert, Team &team);
  void combine(Team &team);

  ExpertsBatch batch_{};
  Workspace work_{};
  int64_t hidden_, intermediate_;
  Dtype dtype_;
  std::vector<Expert> experts_;
  std::vector<int64_t> starts_;   // [experts + 1]: pairs of each expert
  std::vector<int64_t> places_;   // [tokens * top_k]: where each pair went
  std::vector<int64_t> sources_;  // [tokens * top_k]: the token of each sorted pair
  std::vector<int64_t> chosen_;   // experts with tokens
  Buffer memory_, scratch_;
};

}  // namespace weighbridge
