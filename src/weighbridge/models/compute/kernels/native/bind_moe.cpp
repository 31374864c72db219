#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "memory.h"
#include "moe.h"

namespace nb = nanobind;
using namespace weighbridge;

static void check_counts(int64_t tokens, int64_t top_k, int64_t experts) {
  if (top_k < 1 || top_k > experts) throw nb::value_error("top_k must be from 1 to the number of experts");
  if (tokens < 0 || tokens > INT32_MAX || experts > INT32_MAX) throw nb::value_error("no such number of tokens");
}

static void route_tokens(Memory ids, Memory weights, Memory logits, int64_t tokens, int64_t experts, int64_t top_k,
                         bool normalize) {
  check_counts(tokens, top_k, experts);
  if (tokens == 0) return;
  route({take<int32_t>(ids, tokens * top_k * 4, "the chosen experts"),
         take<float>(weights, tokens * top_k * 4, "their weights"),
         take<const float>(logits, tokens * experts * 4, "the scores of experts"), tokens, experts, top_k, normalize});
}

static void construct(Experts *self, int64_t hidden, int64_t intermediate, int dtype, int64_t count) {
  if (count < 1 || hidden < 1 || intermediate < 1)
    throw nb::value_error("a layer of experts has at least one, of at least one element");
  new (self) Experts(hidden, intermediate, static_cast<Dtype>(dtype), count);
}

static ExpertsBatch batch_of(const Experts &self, Memory out, Memory x, Memory ids, Memory weights, int64_t tokens,
                             int64_t top_k) {
  check_counts(tokens, top_k, self.count());
  if (tokens == 0) return {nullptr, nullptr, nullptr, nullptr, 0, top_k};
  const int64_t row = self.row_bytes(), choices = tokens * top_k * 4;
  return {take<void>(out, tokens * row, "the output of experts"), take<const void>(x, tokens * row, "their input"),
          take<const int32_t>(ids, choices, "the chosen experts"), take<const float>(weights, choices, "their weights"),
          tokens, top_k};
}

static void run(Experts &self, Memory out, Memory x, Memory ids, Memory weights, int64_t tokens, int64_t top_k,
                int threads) {
  const ExpertsBatch batch = batch_of(self, out, x, ids, weights, tokens, top_k);
  nb::gil_scoped_release release;
  self.run(batch, threads);
}

static void begin(Experts &self, Memory out, Memory x, Memory ids, Memory weights, int64_t tokens, int64_t top_k) {
  self.begin(batch_of(self, out, x, ids, weights, tokens, top_k));
}

void bind_moe(nb::module_ &module) {
  module.def("route", &route_tokens);
  nb::class_<Experts>(module, "Experts", "The experts of one layer as addresses of their weights. See moe.h.")
      .def("__init__", &construct)
      .def("set", &Experts::set)
      .def("run", &run)
      .def("begin", &begin)
      .def("compute", &Experts::compute, nb::call_guard<nb::gil_scoped_release>())
      .def("finish", &Experts::finish, nb::call_guard<nb::gil_scoped_release>());
}
