#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <optional>

#include "linear_checks.h"
#include "parallel.h"
#include "repack.h"

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
      scratch.reserve(args.block * scratch_bytes(matrix)));
  std::optional<nb::gil_scoped_release> released;
  if (tokens * matrix.rows * matrix.columns >= release_gil_from) released.emplace();
  const LinearKernels &kernels = active_linear();
  with_team(threads, [&](Team &team, int) { kernels.linear(args, team); });
}

void construct(PackedMatrix *self, Memory codes, Memory scales, Memory bias, float multiplier, int form, int64_t rows,
               int64_t columns) {
  new (self) PackedMatrix(packed_matrix(codes, scales, bias, multiplier, form, rows, columns));
}

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int64Row = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// out[i] = row ids[i], in float32.
void read_rows(const PackedMatrix &matrix, Memory out, Int32Row ids, int threads) {
  const int64_t count = (int64_t)ids.shape(0);
  if (count == 0) return;
  for (int64_t i = 0; i < count; i++)
    if (ids.data()[i] < 0 || ids.data()[i] >= matrix.rows) throw std::out_of_range("a row is outside the matrix");
  const ReadRowsArgs args{take<float>(out, count * matrix.columns * 4, "the rows that are read"), ids.data(), matrix};
  const LinearKernels &kernels = active_linear();
  parallel_rows(count, count * matrix.columns, threads,
                [&](int64_t begin, int64_t end) { kernels.read_rows(args, begin, end); });
}

// Memory as (address, bytes); returns whether every scale is finite. See repack.h.
bool repack_blocks(Memory codes, Memory scales, int form, int stored, Memory blocks, Int64Row order, int64_t columns,
                   int threads) {
  const RepackArgs args =
      repack_args(codes, scales, form, stored, blocks, order.data(), (int64_t)order.shape(0), columns);
  nb::gil_scoped_release released;
  return repack(args, threads);
}

std::pair<int64_t, int64_t> sizes(int form, int64_t rows, int64_t columns) {
  if (!is_form(form) || rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX)
    throw std::invalid_argument("these are no form and sizes of a packed matrix");
  const Form own = static_cast<Form>(form);
  return {tiles_of(rows) * tile_code_bytes(own, columns), tiles_of(rows) * tile_scale_bytes(own, columns)};
}

}  // namespace

void bind_linear(nb::module_ &module) {
  nb::class_<PackedMatrix>(module, "PackedMatrix",
                           "Packed codes, scales and bias as (address, bytes), (0, 0) for none; the caller keeps them alive.")
      .def("__init__", &construct, nb::arg("codes"), nb::arg("scales"), nb::arg("bias"), nb::arg("multiplier"),
           nb::arg("form"), nb::arg("rows"), nb::arg("columns"))
      .def("stacked", &stacked, nb::arg("below"))
      .def("with_bias", &with_bias, nb::arg("bias"))
      .def("read_rows", &read_rows)
      .def("multiply", &multiply);
  module.def("repack", &repack_blocks);
  module.def("packed_sizes", &sizes, "Bytes of the codes and of the scales of a matrix in this form.");
  module.attr("PACKED_LAYOUT") = packed_layout;
  module.def("multiplies_bfloat16", [] { return active_linear().multiplies_bfloat16; });
}
