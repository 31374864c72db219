#include "moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "elementwise.h"
#include "linear_checks.h"

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

Experts::Experts(int64_t hidden, int64_t intermediate, Dtype dtype, int64_t count)
    : hidden_(hidden), intermediate_(intermediate), dtype_(dtype), experts_(count), starts_(count + 1) {}

void Experts::set(int64_t index, const PackedMatrix &gate_up, const PackedMatrix &down) {
  if (index < 0 || index >= int64_t(experts_.size())) throw std::out_of_range("no such expert");
  check_shape(gate_up, "gate and up of an expert", 2 * intermediate_, hidden_, dtype_);
  check_shape(down, "down of an expert", hidden_, intermediate_, dtype_);
  experts_[index] = {gate_up, down};
}

// Counting sort of the (token, choice) pairs by expert; tokens stay in order within one.
void Experts::sort() {
  const int64_t pairs = batch_.tokens * batch_.top_k, count = int64_t(experts_.size());
  starts_.assign(count + 1, 0);
  for (int64_t i = 0; i < pairs; i++) {
    const int32_t expert = batch_.ids[i];
    if (expert < 0 || expert >= count) throw std::out_of_range("expert " + std::to_string(expert) + " is not there");
    starts_[expert + 1]++;
  }
  chosen_.clear();
  for (int64_t e = 0; e < count; e++) {
    if (starts_[e + 1] > 0) chosen_.push_back(e);
    starts_[e + 1] += starts_[e];
  }
  places_.resize(pairs);
  sources_.resize(pairs);
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  for (int64_t i = 0; i < pairs; i++) {
    places_[i] = next[batch_.ids[i]]++;
    sources_[places_[i]] = i / batch_.top_k;
  }
}

void Experts::lay_out() {
  int64_t largest = 0;
  for (int64_t e : chosen_) largest = std::max(largest, starts_[e + 1] - starts_[e]);
  const int64_t element = bytes_of(dtype_);
  const int64_t sizes[] = {largest * hidden_ * element, largest * 2 * intermediate_ * element,
                           largest * intermediate_ * element, batch_.tokens * batch_.top_k * hidden_ * element};
  const auto parts = memory_.parts(sizes);
  work_ = {parts[0], parts[1], parts[2], parts[3]};
}

void Experts::check(const std::vector<int64_t> &experts) {
  int64_t scratch = 0;
  for (int64_t e : experts) {
    if (e < 0 || e >= int64_t(experts_.size()) || experts_[e].down.count == 0)
      throw std::out_of_range("expert " + std::to_string(e) + " is not there");
    const int64_t tokens = starts_[e + 1] - starts_[e];
    for (const PackedMatrix *matrix : {&experts_[e].gate_up, &experts_[e].down})
      scratch = std::max(scratch, block_tokens(*matrix, tokens) * scratch_bytes(*matrix));
  }
  scratch_.reserve(scratch);
}

void Experts::multiply(int64_t expert, Team &team) {
  const int64_t start = starts_[expert], tokens = starts_[expert + 1] - start, row = hidden_ * bytes_of(dtype_);
  if (tokens == 0) return;
  const auto linear = [&](void *out, const void *x, const PackedMatrix &matrix, Producer producer) {
    const LinearArgs args{out, x, dtype_, tokens, matrix, reinterpret_cast<uint8_t *>(scratch_.reserve(0)),
                          block_tokens(matrix, tokens), producer};
    active_linear().linear(args, team);
  };
  const GatherRows gather{work_.gathered, static_cast<const char *>(batch_.x), sources_.data() + start, row};
  const SiluArgs silu{work_.inner, work_.gate_up, dtype_, intermediate_};
  linear(work_.gate_up, work_.gathered, experts_[expert].gate_up, {produce_gather, &gather});
  linear(work_.outputs + start * row, work_.inner, experts_[expert].down, {produce_silu, &silu});
}

void Experts::combine(Team &team) {
  const int64_t share = claim_size(batch_.tokens, team);
  for (int64_t begin; (begin = team.claim(share)) < batch_.tokens;)
    for (int64_t token = begin; token < std::min(begin + share, batch_.tokens); token++)
      combine_row(batch_, work_.outputs, places_.data(), token, hidden_, dtype_);
}

void Experts::begin(const ExpertsBatch &batch) {
  batch_ = batch;
  sort();
  lay_out();
}

void Experts::compute(const std::vector<int64_t> &experts, int threads) {
  check(experts);
  with_team(threads, [&](Team &team, int) {
    for (int64_t expert : experts) multiply(expert, team);
  });
}

void Experts::finish(int threads) {
  with_team(threads, [&](Team &team, int) { combine(team); });
}

void Experts::run(const ExpertsBatch &batch, int threads) {
  begin(batch);
  check(chosen_);
  with_team(threads, [&](Team &team, int) {
    for (int64_t expert : chosen_) multiply(expert, team);
    combine(team);
  });
}

}  // namespace weighbridge
