#include "moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "elementwise.h"

namespace weighbridge {

namespace {

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 4; }

float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, even on ties; NaN stays NaN.
uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Copies the rows of the tokens that chose an expert next to each other, just before they are multiplied.
struct GatherRows {
  char *out;
  const char *x;
  const int64_t *sources;
  int64_t bytes;
};

void produce_gather(const void *args, int64_t begin, int64_t end) {
  const GatherRows &rows = *static_cast<const GatherRows *>(args);
  for (int64_t i = begin; i < end; i++)
    std::memcpy(rows.out + i * rows.bytes, rows.x + rows.sources[i] * rows.bytes, rows.bytes);
}

void produce_silu(const void *args, int64_t begin, int64_t end) {
  active_elementwise().silu_mul(*static_cast<const SiluArgs *>(args), begin, end);
}

void combine_row(const ExpertsBatch &batch, const char *outputs, const int64_t *places, int64_t token, int64_t hidden,
                 Dtype dtype) {
  const float *weights = batch.weights + token * batch.top_k;
  const int64_t *pairs = places + token * batch.top_k;
  for (int64_t i = 0; i < hidden; i++) {
    float sum = 0.0f;
    for (int64_t k = 0; k < batch.top_k; k++) {
      const int64_t at = pairs[k] * hidden + i;
      const float y = dtype == Dtype::bfloat16 ? to_float(reinterpret_cast<const uint16_t *>(outputs)[at])
                                               : reinterpret_cast<const float *>(outputs)[at];
      sum += weights[k] * y;
    }
    const int64_t at = token * hidden + i;
    if (dtype == Dtype::bfloat16)
      static_cast<uint16_t *>(batch.out)[at] = to_bfloat16(sum);
    else
      static_cast<float *>(batch.out)[at] = sum;
  }
}

void route_token(const RouteArgs &args, int64_t token, float *probabilities) {
  const float *logits = args.logits + token * args.experts;
  int32_t *ids = args.ids + token * args.top_k;
  float *weights = args.weights + token * args.top_k;
  const float largest = *std::max_element(logits, logits + args.experts);
  float total = 0.0f, chosen = 0.0f;
  for (int64_t e = 0; e < args.experts; e++) total += probabilities[e] = std::exp(logits[e] - largest);
  for (int64_t k = 0; k < args.top_k; k++) {
    int64_t best = 0;
    for (int64_t e = 1; e < args.experts; e++)
      if (probabilities[e] > probabilities[best]) best = e;
    ids[k] = int32_t(best);
    weights[k] = probabilities[best] / total;
    chosen += weights[k];
    probabilities[best] = -1.0f;
  }
  if (args.normalize)
    for (int64_t k = 0; k < args.top_k; k++) weights[k] /= chosen;
}

}  // namespace

void route(const RouteArgs &args) {
  std::vector<float> probabilities(args.experts);
  for (int64_t token = 0; token < args.tokens; token++) route_token(args, token, probabilities.data());
}

struct Experts::Workspace {
  char *gathered;    // [pairs of one expert, hidden]
  char *gate_up;     // [pairs of one expert, 2 intermediate]
  char *inner;       // [pairs of one expert, intermediate]
  char *outputs;     // [pairs, hidden]
  uint8_t *scratch;  // activations as a linear layer reads them
};

Experts::Experts(int64_t hidden, int64_t intermediate, Dtype dtype, int64_t count)
    : hidden_(hidden), intermediate_(intermediate), dtype_(dtype), experts_(count) {}

void Experts::set(int64_t index, const PackedMatrix &gate_up, const PackedMatrix &down) {
  if (index < 0 || index >= int64_t(experts_.size())) throw std::out_of_range("no such expert");
  if (gate_up.columns != hidden_ || gate_up.rows != 2 * intermediate_ || down.columns != intermediate_ ||
      down.rows != hidden_)
    throw std::invalid_argument("the matrices of an expert have other shapes than its layer");
  experts_[index] = {gate_up, down};
}

// Counting sort of the (token, choice) pairs by expert; tokens stay in order within one.
void Experts::sort(const ExpertsBatch &batch) {
  const int64_t pairs = batch.tokens * batch.top_k, count = int64_t(experts_.size());
  starts_.assign(count + 1, 0);
  for (int64_t i = 0; i < pairs; i++) {
    const int32_t expert = batch.ids[i];
    if (expert < 0 || expert >= count || experts_[expert].down.codes == nullptr)
      throw std::out_of_range("expert " + std::to_string(expert) + " is not there");
    starts_[expert + 1]++;
  }
  for (int64_t e = 0; e < count; e++) starts_[e + 1] += starts_[e];
  places_.resize(pairs);
  sources_.resize(pairs);
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  for (int64_t i = 0; i < pairs; i++) {
    places_[i] = next[batch.ids[i]]++;
    sources_[places_[i]] = i / batch.top_k;
  }
}

Experts::Workspace Experts::lay_out(int64_t pairs, int64_t largest) {
  int64_t scratch = 0;
  for (const Expert &expert : experts_)
    for (const PackedMatrix *matrix : {&expert.gate_up, &expert.down})
      if (matrix->codes != nullptr)
        scratch = std::max(scratch, block_tokens(*matrix, largest) * scratch_bytes(matrix->bits, matrix->columns));
  const int64_t element = bytes_of(dtype_);
  const int64_t sizes[] = {largest * hidden_ * element, largest * 2 * intermediate_ * element,
                           largest * intermediate_ * element, pairs * hidden_ * element, scratch};
  int64_t offsets[5], total = 0;
  for (int i = 0; i < 5; i++) {
    offsets[i] = total;
    total += (sizes[i] + 63) / 64 * 64;
  }
  char *at = memory_.reserve(total);
  return {at + offsets[0], at + offsets[1], at + offsets[2], at + offsets[3],
          reinterpret_cast<uint8_t *>(at + offsets[4])};
}

void Experts::run(const ExpertsBatch &batch, int threads) {
  sort(batch);
  int64_t largest = 0;
  for (size_t e = 0; e < experts_.size(); e++) largest = std::max(largest, starts_[e + 1] - starts_[e]);
  const Workspace work = lay_out(batch.tokens * batch.top_k, largest);
  const int64_t row_bytes = hidden_ * bytes_of(dtype_);
  const auto multiply = [&](void *out, const void *x, const PackedMatrix &matrix, int64_t tokens, Producer producer,
                            Team &team) {
    const LinearArgs args{out, x, dtype_, tokens, matrix, work.scratch, block_tokens(matrix, tokens), producer};
    active_linear().linear(args, team);
  };
  with_team(threads, [&](Team &team, int) {
    for (size_t e = 0; e < experts_.size(); e++) {
      const int64_t start = starts_[e], tokens = starts_[e + 1] - start;
      if (tokens == 0) continue;
      const GatherRows gather{work.gathered, static_cast<const char *>(batch.x), sources_.data() + start, row_bytes};
      const SiluArgs silu{work.inner, work.gate_up, dtype_, intermediate_};
      multiply(work.gate_up, work.gathered, experts_[e].gate_up, tokens, {produce_gather, &gather}, team);
      multiply(work.outputs + start * row_bytes, work.inner, experts_[e].down, tokens, {produce_silu, &silu}, team);
    }
    const int64_t share = claim_size(batch.tokens, team);
    for (int64_t begin; (begin = team.claim(share)) < batch.tokens;)
      for (int64_t token = begin; token < std::min(begin + share, batch.tokens); token++)
        combine_row(batch, work.outputs, places_.data(), token, hidden_, dtype_);
  });
}

}  // namespace weighbridge
