#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include "forward.h"
#include "memory.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

static void construct(Forward *self, int hidden, int intermediate, int num_heads, int kv_heads, int head_dim,
                      float eps, float scale, int dtype, Memory embedding,
                      const PackedMatrix *packed_embedding, int64_t vocabulary, Memory cos_sin,
                      int64_t positions, Memory final_norm, const PackedMatrix &lm_head) {
  if (hidden < 1 || intermediate < 1 || kv_heads < 1 || num_heads < 1 || num_heads % kv_heads != 0 || head_dim < 2 ||
      head_dim % 2 != 0 || vocabulary < 1 || vocabulary > INT32_MAX || positions < 1 || positions > INT32_MAX)
    throw std::invalid_argument("these are no sizes of a decoder");
  const ModelShape shape{hidden, intermediate, num_heads, kv_heads, head_dim, eps, scale, (Dtype)dtype};
  const int64_t element = shape.dtype == Dtype::bfloat16 ? 2 : 4;
  const bool packed = packed_embedding != nullptr;
  const void *table = packed ? nullptr : take<const void>(embedding, vocabulary * hidden * element, "the embedding");
  const ModelWeights weights{table, packed ? *packed_embedding : PackedMatrix{}, vocabulary,
                             take<const float>(cos_sin, positions * head_dim * 4, "the rotary table"), positions,
                             take<const float>(final_norm, hidden * int64_t(4), "the last norm"), lm_head};
  new (self) Forward(shape, weights);
}

static void add_layer(Forward &self, Memory input_norm, Memory post_attention_norm, Memory q_norm, Memory k_norm,
                      const Projection &qkv, const Projection &output, const Projection &gate_up,
                      const Projection &down, bool rotates, int window) {
  const int64_t hidden = self.shape().hidden * int64_t(4), head = self.shape().head_dim * int64_t(4);
  self.add_layer({take<const float>(input_norm, hidden, "the norm before attention"),
                  take<const float>(post_attention_norm, hidden, "the norm behind attention"),
                  take_if_there<const float>(q_norm, head, "the norm of queries"),
                  take_if_there<const float>(k_norm, head, "the norm of keys"), qkv, output, gate_up, down, rotates,
                  window});
}

static void construct_projection(Projection *self, const PackedMatrix &matrix, const LowRank &added) {
  new (self) Projection(matrix, added);
}

static void run(Forward &self, Int32Row token_ids, Int32Row positions, Int32Row slots, Int32Row query_starts,
                Int32Row context_lens, Int32Table block_tables, Int32Row rows, const KvPool &pool, Memory logits,
                Int32Row state_rows, Memory states, int threads, const RowGroups *groups) {
  const size_t sequences = context_lens.shape(0);
  if (query_starts.shape(0) != sequences + 1 || block_tables.shape(0) != sequences)
    throw std::invalid_argument("batch layout: query_starts, context_lens and block_tables disagree in length");
  if (positions.shape(0) != slots.shape(0) || positions.shape(0) > token_ids.shape(0))
    throw std::invalid_argument("batch layout: positions and slots need one entry per token that is not padding");
  const int64_t element = self.shape().dtype == Dtype::bfloat16 ? 2 : 4;
  const int64_t logit_bytes = (int64_t)rows.shape(0) * self.outputs() * element;
  const int64_t state_bytes = (int64_t)state_rows.shape(0) * self.shape().hidden * element;
  void *const logits_out = logit_bytes == 0 ? nullptr : take<void>(logits, logit_bytes, "the logits");
  void *const states_out = state_bytes == 0 ? nullptr : take<void>(states, state_bytes, "the states");
  const ForwardBatch batch{token_ids.data(),
                           (int64_t)token_ids.shape(0),
                           (int64_t)positions.shape(0),
                           positions.data(),
                           slots.data(),
                           {query_starts.data(), context_lens.data(), block_tables.data(), (int64_t)sequences,
                            (int64_t)block_tables.shape(1)},
                           rows.data(),
                           (int64_t)rows.shape(0),
                           logits_out,
                           state_rows.data(),
                           (int64_t)state_rows.shape(0),
                           states_out,
                           groups};
  nb::gil_scoped_release release;
  self.run(batch, pool, threads);
}

void bind_forward(nb::module_ &module) {
  nb::class_<Projection>(module, "Projection", "A packed matrix, and what adapters add to its product.")
      .def(nb::init_implicit<const PackedMatrix &>())
      .def("__init__", &construct_projection, nb::arg("matrix"), nb::arg("added"));
  nb::class_<Forward>(module, "Forward",
                      "A decoder as addresses of its weights; the caller keeps them alive. See forward.h.")
      .def("__init__", &construct, nb::arg("hidden"), nb::arg("intermediate"), nb::arg("num_heads"), nb::arg("kv_heads"),
           nb::arg("head_dim"), nb::arg("eps"), nb::arg("scale"), nb::arg("dtype"), nb::arg("embedding"),
           nb::arg("packed_embedding").none(), nb::arg("vocabulary"), nb::arg("cos_sin"), nb::arg("positions"),
           nb::arg("final_norm"), nb::arg("lm_head"))
      .def("add_layer", &add_layer)
      .def("run", &run, nb::arg("token_ids"), nb::arg("positions"), nb::arg("slots"), nb::arg("query_starts"),
           nb::arg("context_lens"), nb::arg("block_tables"), nb::arg("rows"), nb::arg("pool"), nb::arg("logits"),
           nb::arg("state_rows"), nb::arg("states"), nb::arg("threads"), nb::arg("groups").none() = nb::none());
}
