#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "forward.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
static const T *pointer(uintptr_t address) {
  return reinterpret_cast<const T *>(address);
}

static void construct(Forward *self, int hidden, int intermediate, int num_heads, int kv_heads, int head_dim,
                      float eps, float scale, int dtype, uintptr_t embedding, int64_t vocabulary, uintptr_t cos_sin,
                      int64_t positions, uintptr_t final_norm, const PackedMatrix &lm_head) {
  const ModelShape shape{hidden, intermediate, num_heads, kv_heads, head_dim, eps, scale, (Dtype)dtype};
  const ModelWeights weights{pointer<void>(embedding), vocabulary, pointer<float>(cos_sin), positions,
                             pointer<float>(final_norm), lm_head};
  new (self) Forward(shape, weights);
}

static void add_layer(Forward &self, uintptr_t input_norm, uintptr_t post_attention_norm, uintptr_t q_norm,
                      uintptr_t k_norm, const PackedMatrix &qkv, const PackedMatrix &output,
                      const PackedMatrix &gate_up, const PackedMatrix &down, bool rotates, int window) {
  self.add_layer({pointer<float>(input_norm), pointer<float>(post_attention_norm), pointer<float>(q_norm),
                  pointer<float>(k_norm), qkv, output, gate_up, down, rotates, window});
}

static void run(Forward &self, Int32Row token_ids, Int32Row positions, Int32Row slots, Int32Row query_starts,
                Int32Row context_lens, Int32Table block_tables, Int32Row rows, const KvPool &pool, uintptr_t logits,
                Int32Row state_rows, uintptr_t states, int threads) {
  const size_t sequences = context_lens.shape(0);
  if (query_starts.shape(0) != sequences + 1 || block_tables.shape(0) != sequences)
    throw std::invalid_argument("batch layout: query_starts, context_lens and block_tables disagree in length");
  if (positions.shape(0) != slots.shape(0) || positions.shape(0) > token_ids.shape(0))
    throw std::invalid_argument("batch layout: positions and slots need one entry per token that is not padding");
  const ForwardBatch batch{token_ids.data(),
                           (int64_t)token_ids.shape(0),
                           (int64_t)positions.shape(0),
                           positions.data(),
                           slots.data(),
                           {query_starts.data(), context_lens.data(), block_tables.data(), (int64_t)sequences,
                            (int64_t)block_tables.shape(1)},
                           rows.data(),
                           (int64_t)rows.shape(0),
                           reinterpret_cast<void *>(logits),
                           state_rows.data(),
                           (int64_t)state_rows.shape(0),
                           reinterpret_cast<void *>(states)};
  nb::gil_scoped_release release;
  self.run(batch, pool, threads);
}

void bind_forward(nb::module_ &module) {
  nb::class_<Forward>(module, "Forward",
                      "A decoder as addresses of its weights; the caller keeps them alive. See forward.h.")
      .def("__init__", &construct)
      .def("add_layer", &add_layer)
      .def("run", &run);
}
