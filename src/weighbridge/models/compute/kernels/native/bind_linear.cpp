#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <optional>

#include "linear_checks.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace weighbridge;

namespace {

// Below this many multiply-adds (some tens of microseconds) releasing the interpreter costs more than it gives.
constexpr int64_t release_gil_from = 4'000'000;

// out = x W^T + bias; out and x hold `tokens` rows of `dtype`.
void multiply(const PackedMatrix &matrix, uintptr_t out, uintptr_t x, int dtype, int64_t tokens, int threads) {
  check_shape(matrix, "the matrix", matrix.rows, matrix.columns, static_cast<Dtype>(dtype));
  thread_local Buffer scratch;
  LinearArgs args{};
  args.out = reinterpret_cast<void *>(out);
  args.x = reinterpret_cast<const void *>(x);
  args.dtype = static_cast<Dtype>(dtype);
  args.tokens = tokens;
  args.matrix = matrix;
  args.block = block_tokens(matrix, tokens);
  args.scratch = reinterpret_cast<uint8_t *>(
      scratch.reserve(args.block * scratch_bytes(matrix.bits, matrix.columns)));
  std::optional<nb::gil_scoped_release> released;
  if (tokens * matrix.rows * matrix.columns >= release_gil_from) released.emplace();
  const LinearKernels &kernels = active_linear();
  with_team(threads, [&](Team &team, int) { kernels.linear(args, team); });
}

void construct(PackedMatrix *self, Memory codes, Memory scales, Memory bias, float multiplier, int bits, int64_t rows,
               int64_t columns) {
  new (self) PackedMatrix(packed_matrix(codes, scales, bias, multiplier, bits, rows, columns));
}

}  // namespace

void bind_linear(nb::module_ &module) {
  nb::class_<PackedMatrix>(module, "PackedMatrix",
                           "Packed codes, scales and bias as (address, bytes), (0, 0) for none; the caller keeps them alive.")
      .def("__init__", &construct, nb::arg("codes"), nb::arg("scales"), nb::arg("bias"), nb::arg("multiplier"),
           nb::arg("bits"), nb::arg("rows"), nb::arg("columns"))
      .def("multiply", &multiply);
  module.def("multiplies_bfloat16", [] { return active_linear().multiplies_bfloat16; });
}
