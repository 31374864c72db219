#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "elementwise.h"
#include "kv_pool.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32Out = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
static T *pointer(uintptr_t address) {
  return reinterpret_cast<T *>(address);
}

static void check_range(const int32_t *values, int64_t count, int64_t limit, const char *what) {
  uint32_t largest = 0;  // a negative one is very large here
  for (int64_t i = 0; i < count; i++) largest = (uint32_t)values[i] > largest ? (uint32_t)values[i] : largest;
  if (count > 0 && largest >= (uint64_t)limit)
    throw std::out_of_range(std::string(what) + " " + std::to_string((int32_t)largest) + " is outside 0.." +
                            std::to_string(limit - 1));
}

static void norm(uintptr_t out, int dtype, uintptr_t residual, uintptr_t x, uintptr_t weight, int64_t rows,
                 int64_t width, float eps, int threads) {
  const NormArgs args{pointer<void>(out),           pointer<float>(residual), pointer<void>(x),
                      pointer<const float>(weight), (Dtype)dtype,             width,
                      eps};
  const auto kernel = active_elementwise().norm;
  parallel_rows(rows, rows * width, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// `dtype` of qkv, where it is not the cache's.
static void rope_and_write(uintptr_t qkv, int64_t tokens, const KvPool &pool, int layer, Int32Row positions,
                           Int32Row slots, uintptr_t cos_sin, int64_t max_positions, int num_heads, uintptr_t q_norm,
                           uintptr_t k_norm, float eps, int threads, int dtype) {
  const KvLayout &kv = pool.layout;
  if ((int64_t)positions.shape(0) != tokens || (int64_t)slots.shape(0) != tokens)
    throw std::invalid_argument("batch layout: positions and slots need one entry per row of qkv");
  check_range(slots.data(), tokens, (int64_t)pool.num_blocks * kv.block_size, "slot");
  if (cos_sin != 0) check_range(positions.data(), tokens, max_positions, "position");
  RopeArgs args{};
  args.qkv = pointer<void>(qkv);
  args.kv = pool.layer(layer);
  args.dtype = dtype < 0 ? pool.dtype : (Dtype)dtype;
  args.kv_dtype = pool.dtype;
  args.num_heads = num_heads;
  args.kv_heads = kv.kv_heads;
  args.head_dim = kv.head_dim;
  args.block_size = kv.block_size;
  args.kv_layers = kv.layers;
  args.positions = positions.data();
  args.slots = slots.data();
  args.cos_sin = pointer<const float>(cos_sin);
  args.q_norm = pointer<const float>(q_norm);
  args.k_norm = pointer<const float>(k_norm);
  args.eps = eps;
  const auto kernel = active_elementwise().rope_and_write;
  const int64_t work = 2 * tokens * (num_heads + 2 * kv.kv_heads) * kv.head_dim;
  parallel_rows(tokens, work, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

static void silu_mul(uintptr_t out, uintptr_t gate_up, int dtype, int64_t rows, int64_t width, int threads) {
  const SiluArgs args{pointer<void>(out), pointer<const void>(gate_up), (Dtype)dtype, width};
  const auto kernel = active_elementwise().silu_mul;
  parallel_rows(rows, 2 * rows * width, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

static void gather_rows(uintptr_t out, int out_dtype, uintptr_t table, int table_dtype, int64_t table_rows,
                        Int32Row rows, int64_t width, int threads) {
  const int64_t count = (int64_t)rows.shape(0);
  check_range(rows.data(), count, table_rows, "row");
  const GatherArgs args{pointer<void>(out), pointer<const void>(table), (Dtype)out_dtype, (Dtype)table_dtype,
                        rows.data(),        width};
  const auto kernel = active_elementwise().gather_rows;
  parallel_rows(count, count * width, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

static void argmax(Int32Out out, uintptr_t logits, int dtype, int64_t width, int threads) {
  const ArgmaxArgs args{out.data(), pointer<const void>(logits), (Dtype)dtype, width};
  const auto kernel = active_elementwise().argmax;
  const int64_t rows = (int64_t)out.shape(0);
  parallel_rows(rows, rows * width, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void bind_elementwise(nb::module_ &module) {
  module.def("norm", &norm);
  module.def("rope_and_write", &rope_and_write, nb::arg("qkv"), nb::arg("tokens"), nb::arg("pool"), nb::arg("layer"),
             nb::arg("positions"), nb::arg("slots"), nb::arg("cos_sin"), nb::arg("max_positions"), nb::arg("num_heads"),
             nb::arg("q_norm"), nb::arg("k_norm"), nb::arg("eps"), nb::arg("threads"), nb::arg("dtype") = -1);
  module.def("silu_mul", &silu_mul);
  module.def("gather_rows", &gather_rows);
  module.def("argmax", &argmax);
}
