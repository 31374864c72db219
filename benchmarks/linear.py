"""Linear layers: oneDNN bfloat16, our bfloat16, int8 and int4, and the types of GGUF, at the shapes of a model.

Run: python benchmarks/linear.py [--tokens 1 4 16 64 512] [--threads 2] [--shapes qwen2.5-1.5b] [--layers gate_up]
         [--forms Q4_K,Q6_K]

WEIGHBRIDGE_KERNELS=avx2 forces the kernels of an older CPU; activations are then float32, as there. Each form is
timed over enough copies of a layer that their weights exceed the cache, as in a decode step; the best pass counts. With
--cpu it is the time on a core, of one thread, for machines that others use: it tells of arithmetic, and of memory no
more than others leave. GB/s: bytes of the weights over the time. GOP/s: two operations per weight and token. The output
matrix sees at most 64 tokens: those sampled.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial

# Spinning OpenMP threads stall for milliseconds when something else needs the core; read as torch starts.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from weighbridge.models.compute.kernels.pages import weight_memory
from weighbridge.models.compute.linear import DenseLinear, Linear
from weighbridge.models.compute.linear_packed import (
    PackedLinear,
    PackedRows,
    bfloat16_linear,
    multiplies_bfloat16,
    quantized_linear,
)
from weighbridge.models.compute.packed_forms import Form
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized

SHAPES = {  # rows, columns, layers of the model
    "smollm2-135m": {
        "qkv": (960, 576, 30),
        "output": (576, 576, 30),
        "gate_up": (3072, 576, 30),
        "down": (576, 1536, 30),
        "lm_head": (49152, 576, 1),
    },
    "qwen2.5-1.5b": {
        "qkv": (2048, 1536, 28),
        "output": (1536, 1536, 28),
        "gate_up": (17920, 1536, 28),
        "down": (1536, 8960, 28),
        "lm_head": (151936, 1536, 1),
    },
}
FORMS = (
    "bf16 oneDNN,bf16 own,int8,int4,int4 torch"
    if multiplies_bfloat16()
    else "bf16 oneDNN,int8,int4,int4 torch"
)
CACHE_BYTES = 96 << 20
SECONDS_PER_CELL = 0.3


class TorchInt4:
    """What torch itself has for 4 bits: `_weight_int4pack_mm_for_cpu`, for comparison."""

    def __init__(self, rows: int, columns: int) -> None:
        self.in_features, self.out_features = columns, rows
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._scales = torch.rand(columns // GROUP_SIZE, rows, 2).bfloat16()

    @property
    def nbytes(self) -> int:
        return int(self._weight.nbytes + self._scales.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._weight, GROUP_SIZE, self._scales
        )
        return y


def quantized(rows: int, columns: int, bits: int) -> Linear:
    generator = np.random.default_rng(0)
    scales = generator.random((rows, columns // GROUP_SIZE), np.float32)
    if bits == 4:
        codes = generator.integers(0, 16, (rows, columns), np.uint8)
        return quantized_linear(GroupQuantized(4, codes, scales, -8 * scales), None, torch.bfloat16)
    signed = generator.integers(-127, 128, (rows, columns), np.int8)
    return quantized_linear(GroupQuantized(8, signed, scales, None), None, torch.bfloat16)


def in_form(form: Form, rows: int, columns: int) -> Linear:
    """Random codes of a type of GGUF, with finite scales."""
    native = importlib.import_module("weighbridge.models.compute.kernels._native")
    size = native.packed_sizes(int(form), rows, columns)
    codes, scales = (weight_memory.take(part) for part in size)
    codes.numpy()[...] = np.frombuffer(np.random.default_rng(0).bytes(size[0]), np.uint8)
    scales.numpy().view(np.float16)[...] = 0.01
    return PackedLinear([PackedRows(form, rows, columns, codes, scales)], None, compute_dtype())


def compute_dtype() -> torch.dtype:
    """What activations are on the CPU whose kernels are used."""
    return torch.float32 if os.environ.get("WEIGHBRIDGE_KERNELS") == "avx2" else torch.bfloat16


def forms(names: list[str]) -> dict[str, Callable[[int, int], Linear]]:
    def dense(rows: int, columns: int) -> Linear:
        return DenseLinear(torch.randn(rows, columns), None, torch.bfloat16)

    def own(rows: int, columns: int) -> Linear:
        return bfloat16_linear(torch.randn(rows, columns), None)

    made: dict[str, Callable[[int, int], Linear]] = {"bf16 oneDNN": dense}
    if multiplies_bfloat16():
        made["bf16 own"] = own
    for form in Form:
        if form is not Form.BFLOAT16:
            made[form.name] = partial(in_form, form)
    made["int8"] = lambda rows, columns: quantized(rows, columns, 8)
    made["int4"] = lambda rows, columns: quantized(rows, columns, 4)
    made["int4 torch"] = TorchInt4
    return {name: made[name] for name in names}


def first_dtype(form: str) -> torch.dtype:
    """What a form's activations are in."""
    return compute_dtype() if form in Form.__members__ else torch.bfloat16


def seconds_per_call(layers: list[Linear], x: torch.Tensor, clock: Callable[[], float]) -> float:
    for layer in layers:
        layer(x)
    best, end = float("inf"), clock() + SECONDS_PER_CELL
    while clock() < end:
        start = clock()
        for layer in layers:
            layer(x)
        best = min(best, clock() - start)
    return best / len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--shapes", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--layers", default="", help="some of them alone: gate_up,down")
    parser.add_argument("--forms", default=FORMS, help="or types of GGUF: Q4_K,Q6_K ...")
    parser.add_argument("--cpu", action="store_true", help="time on a core, of one thread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu else options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'layer':8} {'form':12} {'tokens':>6} {'us':>10} {'GB/s':>6} {'GOP/s':>6}")
    totals: dict[tuple[str, int], float] = {}
    shapes = SHAPES[options.shapes]
    if options.layers:
        shapes = {name: shapes[name] for name in options.layers.split(",")}
    for form, make in forms(options.forms.split(",")).items():
        for name, (rows, columns, count) in shapes.items():
            first = make(rows, columns)
            layers = [first] + [make(rows, columns) for _ in range(min(CACHE_BYTES // first.nbytes, 99))]
            for tokens in options.tokens:
                rows_in = min(tokens, 64) if name == "lm_head" else tokens  # only sampled tokens get logits
                seconds = seconds_per_call(layers, torch.randn(rows_in, columns).to(first_dtype(form)), clock)
                totals[form, tokens] = totals.get((form, tokens), 0.0) + count * seconds
                gigabytes, operations = (
                    first.nbytes / seconds / 1e9,
                    2e-9 * rows_in * rows * columns / seconds,
                )
                print(
                    f"{name:8} {form:12} {rows_in:6} {seconds * 1e6:10.1f} {gigabytes:6.1f} {operations:6.0f}"
                )
            sys.stdout.flush()
    print("\nall linear layers of one step, ms")
    for form in options.forms.split(","):
        cells = " ".join(f"{tokens}: {totals[form, tokens] * 1e3:8.2f}" for tokens in options.tokens)
        print(f"{form:12} {cells}")


if __name__ == "__main__":
    main()
