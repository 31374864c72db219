#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <optional>

#include "low_rank_checks.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace weighbridge;

using Int32Row = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Below this many multiply-adds (some tens of microseconds) releasing the interpreter costs more than it gives.
static constexpr int64_t release_gil_from = 4'000'000;

static void construct(LowRank *self, int64_t columns, int64_t outputs, int64_t slots, int64_t ranks, int dtype) {
  new (self) LowRank(low_rank_matrices(columns, outputs, slots, ranks, static_cast<Dtype>(dtype)));
}

static void construct_groups(RowGroups *self, Int32Row slots, int64_t limit) {
  new (self) RowGroups(slots.data(), (int64_t)slots.shape(0), limit);
}

// Adds to y [rows, outputs] what the slots of `groups` make of x [rows, columns].
static void add(const LowRank &matrices, Memory y, Memory x, const RowGroups &groups, int threads) {
  check_groups(matrices, groups);
  const int64_t element = matrices.dtype == Dtype::bfloat16 ? 2 : 4, rows = groups.rows();
  thread_local Buffer memory;
  LowRankArgs args{};
  args.y = take<void>(y, rows * matrices.outputs * element, "the output of the layer");
  args.x = take<const void>(x, rows * matrices.columns * element, "the input of the layer");
  args.matrices = &matrices;
  args.order = groups.order().data();
  args.runs = groups.runs().data();
  args.num_runs = (int64_t)groups.runs().size();
  const int64_t active = (int64_t)groups.order().size();
  args.inner = reinterpret_cast<float *>(memory.reserve(active * inner_floats(matrices) * (int64_t)sizeof(float)));
  const int64_t work = active * matrices.ranks * (matrices.count * matrices.columns + matrices.outputs);
  std::optional<nb::gil_scoped_release> released;
  if (work >= release_gil_from) released.emplace();
  const LowRankKernels &kernels = active_low_rank();
  with_team(work < smallest_parallel_work ? 1 : threads, [&](Team &team, int) { kernels.add(args, team); });
}

void bind_low_rank(nb::module_ &module) {
  nb::class_<RowGroups>(module, "RowGroups", "The rows of a batch by their slots; negative: none. See row_groups.h.")
      .def("__init__", &construct_groups, nb::arg("slots"), nb::arg("limit"));
  nb::class_<LowRank>(module, "LowRank",
                      "What adapters add to a linear layer, as addresses; the caller keeps them alive. See low_rank.h.")
      .def("__init__", &construct, nb::arg("columns"), nb::arg("outputs"), nb::arg("slots"), nb::arg("ranks"),
           nb::arg("dtype"))
      .def("add_part", &add_low_rank_part, nb::arg("start"), nb::arg("rows"), nb::arg("down"), nb::arg("up"),
           nb::arg("held"))
      .def("add", &add);
}
