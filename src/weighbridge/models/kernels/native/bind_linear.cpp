#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>

#include "linear.h"

namespace nb = nanobind;
using namespace weighbridge;

namespace {

// Rounded activations of one block of tokens should stay in the second-level cache next to a tile of weights.
constexpr int64_t scratch_target_bytes = 512 * 1024;
constexpr int64_t smallest_block = 96;

// Below this many multiply-adds (some tens of microseconds) handing the interpreter over costs more than it gives.
constexpr int64_t release_gil_from = 4'000'000;

// One buffer per calling thread, grown as needed; bounded by the block size, not by the tokens of a call.
void *scratch_of(int64_t bytes) {
  struct Free {
    void operator()(void *p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local int64_t capacity = 0;
  if (capacity < bytes) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.reset(std::aligned_alloc(64, rounded));
    capacity = buffer ? rounded : 0;
    if (!buffer) throw std::bad_alloc();
  }
  return buffer.get();
}

// out = x W^T + bias; out and x hold `tokens` rows of `dtype`.
void multiply(const QuantizedMatrix &matrix, uintptr_t out, uintptr_t x, int dtype, int64_t tokens, int threads) {
  const int64_t token_bytes = matrix.columns / columns_per_group * bytes_per_rounded_group;
  QuantizedLinearArgs args;
  args.out = reinterpret_cast<void *>(out);
  args.x = reinterpret_cast<const void *>(x);
  args.dtype = static_cast<Dtype>(dtype);
  args.tokens = tokens;
  args.matrix = matrix;
  args.block = std::min(tokens, std::max(smallest_block, scratch_target_bytes / token_bytes));
  args.scratch = scratch_of(args.block * token_bytes);
  args.threads = threads;
  std::optional<nb::gil_scoped_release> released;
  if (tokens * matrix.rows * matrix.columns >= release_gil_from) released.emplace();
  active_linear().quantized(args);
}

}  // namespace

void bind_linear(nb::module_ &module) {
  nb::class_<QuantizedMatrix>(module, "QuantizedMatrix",
                              "Pointers to packed codes, scales and bias (0: none); the caller keeps them alive.")
      .def(
          "__init__",
          [](QuantizedMatrix *self, uintptr_t codes, uintptr_t scales, uintptr_t bias, float multiplier, int bits,
             int64_t rows, int64_t columns) {
            new (self) QuantizedMatrix{reinterpret_cast<const uint8_t *>(codes),
                                       reinterpret_cast<const uint16_t *>(scales),
                                       reinterpret_cast<const float *>(bias),
                                       multiplier,
                                       bits,
                                       rows,
                                       columns};
          },
          nb::arg("codes"), nb::arg("scales"), nb::arg("bias"), nb::arg("multiplier"), nb::arg("bits"),
          nb::arg("rows"), nb::arg("columns"))
      .def("multiply", &multiply);
}
