#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "kernels.h"
#include "seats.h"

namespace nb = nanobind;

void bind_attention(nb::module_ &module);
void bind_elementwise(nb::module_ &module);
void bind_forward(nb::module_ &module);
void bind_linear(nb::module_ &module);
void bind_low_rank(nb::module_ &module);
void bind_moe(nb::module_ &module);

NB_MODULE(_native, module) {
  using namespace weighbridge;
  module.doc() = "Kernels on raw pointers; weighbridge.models.compute.kernels wraps and checks them.";
  module.def("active_isa", [] { return isa_name(active_isa()); });
  module.def("supported_isas", [] {
    nb::list names;
    for (Isa isa : {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
      if (isa_supported(isa)) names.append(isa_name(isa));
    return names;
  });
  module.def("seat_threads", &seat_threads);
  bind_elementwise(module);
  bind_attention(module);
  bind_linear(module);
  bind_low_rank(module);
  bind_forward(module);
  bind_moe(module);
}
