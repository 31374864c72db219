"""Linear layers: oneDNN bfloat16, our bfloat16, int8 and int4, at the shapes of SmolLM2-135M.

Run: python benchmarks/linear.py [--tokens 1 4 16 64 512] [--threads 2]

Each form is timed over enough copies of a layer that their weights exceed the cache, as in a decode step; the
best pass counts. GB/s: bytes of the weights over the time. GOP/s: two operations per weight and
token. The output matrix sees at most 64 tokens: those sampled.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

# Spinning OpenMP threads stall for milliseconds when something else needs the core; read as torch starts.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from weighbridge.models.compute.linear import DenseLinear, Linear
from weighbridge.models.compute.linear_packed import bfloat16_linear, multiplies_bfloat16, quantized_linear
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized

SHAPES = {  # rows, columns, layers of the model
    "qkv": (960, 576, 30),
    "output": (576, 576, 30),
    "gate_up": (3072, 576, 30),
    "down": (576, 1536, 30),
    "lm_head": (49152, 576, 1),
}
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


def forms() -> dict[str, Callable[[int, int], Linear]]:
    def dense(rows: int, columns: int) -> Linear:
        return DenseLinear(torch.randn(rows, columns), None, torch.bfloat16)

    def own(rows: int, columns: int) -> Linear:
        return bfloat16_linear(torch.randn(rows, columns), None)

    made: dict[str, Callable[[int, int], Linear]] = {"bf16 oneDNN": dense}
    if multiplies_bfloat16():
        made["bf16 own"] = own
    made["int8"] = lambda rows, columns: quantized(rows, columns, 8)
    made["int4"] = lambda rows, columns: quantized(rows, columns, 4)
    made["int4 torch"] = TorchInt4
    return made


def seconds_per_call(layers: list[Linear], x: torch.Tensor) -> float:
    for layer in layers:
        layer(x)
    best, end = float("inf"), time.perf_counter() + SECONDS_PER_CELL
    while time.perf_counter() < end:
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        best = min(best, time.perf_counter() - start)
    return best / len(layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 512])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    print(f"{'layer':8} {'form':12} {'tokens':>6} {'us':>10} {'GB/s':>6} {'GOP/s':>6}")
    totals: dict[tuple[str, int], float] = {}
    for form, make in forms().items():
        for name, (rows, columns, count) in SHAPES.items():
            first = make(rows, columns)
            layers = [first] + [make(rows, columns) for _ in range(min(CACHE_BYTES // first.nbytes, 99))]
            for tokens in options.tokens:
                rows_in = min(tokens, 64) if name == "lm_head" else tokens  # only sampled tokens get logits
                seconds = seconds_per_call(layers, torch.randn(rows_in, columns).bfloat16())
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
    for form in forms():
        cells = " ".join(f"{tokens}: {totals[form, tokens] * 1e3:8.2f}" for tokens in options.tokens)
        print(f"{form:12} {cells}")


if __name__ == "__main__":
    main()
