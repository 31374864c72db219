#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "moe.h"

namespace nb = nanobind;
using namespace weighbridge;

static void route_tokens(uintptr_t ids, uintptr_t weights, uintptr_t logits, int64_t tokens, int64_t experts,
                         int64_t top_k, bool normalize) {
  if (top_k < 1 || top_k > experts) throw nb::value_error("top_k must be from 1 to the number of experts");
  route({reinterpret_cast<int32_t *>(ids), reinterpret_cast<float *>(weights),
         reinterpret_cast<const float *>(logits), tokens, experts, top_k, normalize});
}

static void construct(Experts *self, int64_t hidden, int64_t intermediate, int dtype, int64_t count) {
  new (self) Experts(hidden, intermediate, static_cast<Dtype>(dtype), count);
}

static ExpertsBatch batch_of(uintptr_t out, uintptr_t x, uintptr_t ids, uintptr_t weights, int64_t tokens,
                             int64_t top_k) {
  return {reinterpret_cast<void *>(out), reinterpret_cast<const void *>(x), reinterpret_cast<const int32_t *>(ids),
          reinterpret_cast<const float *>(weights), tokens, top_k};
}

static void run(Experts &self, uintptr_t out, uintptr_t x, uintptr_t ids, uintptr_t weights, int64_t tokens,
                int64_t top_k, int threads) {
  nb::gil_scoped_release release;
  self.run(batch_of(out, x, ids, weights, tokens, top_k), threads);
}

static void begin(Experts &self, uintptr_t out, uintptr_t x, uintptr_t ids, uintptr_t weights, int64_t tokens,
                  int64_t top_k) {
  self.begin(batch_of(out, x, ids, weights, tokens, top_k));
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
