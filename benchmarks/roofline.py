"""How near each kind of step comes to what this machine could do at best.

    python benchmarks/roofline.py [--quantize auto|none] [--json FILE]

The roof of a step is the longer of two times: bytes it must read (weights, and keys and values of the
context) over the bandwidth measured here, and operations it must do over the matrix speed measured here.
The share is roof over measured time; the measured time is one whole step, sampling included. Bandwidth is the
best sum over an array far larger than the caches. Matrix speed is the best large product
in bfloat16, or in int8 for weights kept in few bits. Steps: decodes at several batch sizes behind 200 tokens
of context, and prompt chunks. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import weighbridge  # noqa: F401  sets how OpenMP waits, before torch loads

# isort: split
import torch

from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.calibration import Shape, measure
from weighbridge.engine.settings import EngineSettings
from weighbridge.models.catalogue.store import resolve

SHAPES = {
    "decode, 1 stream": Shape(1, 1, 200),
    "decode, 16 streams": Shape(16, 1, 200),
    "decode, 16 streams, context 430": Shape(16, 1, 430),
    "decode, 64 streams": Shape(64, 1, 200),
    "prompt of 100": Shape(1, 100, 0),
    "prompt of 400": Shape(1, 400, 0),
    "prompt chunk of 2048": Shape(1, 2048, 0),
    "16 prompts of 100": Shape(16, 100, 0),
}
ARRAY_BYTES = 1 << 29
MATRIX = 2048
SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured: bytes and operations (a multiplication or an addition) per second."""

    bandwidth: float
    operations: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one step cannot avoid."""

    bytes: float
    operations: float

    def roof(self, machine: Machine) -> float:
        return max(self.bytes / machine.bandwidth, self.operations / machine.operations)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--quantize", default="auto", choices=["auto", "none", "int8", "int4"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = EngineSettings(speculate=False, quantize=options.quantize)
    replica = build_replica(resolve(options.model), "roofline", settings)
    few_bits = weight_bytes(replica) < 1.9 * parameters(replica)
    machine = Machine(bandwidth(), int8_speed() if few_bits else bfloat16_speed())
    samples = measure(
        replica.runner, list(SHAPES.values()), replica.settings.block_size, repeats=options.repeats
    )
    print(f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.operations / 1e9:.0f} GOP/s, ", end="")
    print(f"weights {weight_bytes(replica) / 1e6:.0f} MB, {torch.get_num_threads()} threads\n")
    print("| step | measured ms | bytes MB | GOP | memory ms | compute ms | share of the roof |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (name, shape), sample in zip(SHAPES.items(), samples, strict=True):
        work = work_of(replica, shape)
        share = work.roof(machine) / sample.seconds
        rows.append({"step": name, "seconds": sample.seconds, "share": share, **asdict(work)})
        print(
            f"| {name} | {sample.seconds * 1e3:.1f} | {work.bytes / 1e6:.0f} | {work.operations / 1e9:.1f} "
            f"| {work.bytes / machine.bandwidth * 1e3:.1f} | {work.operations / machine.operations * 1e3:.1f} "
            f"| {share:.0%} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(machine), "steps": rows}, indent=1))


def work_of(replica: EngineReplica, shape: Shape) -> Work:
    """Weights once, keys and values of every context once; two operations per weight and token.

    Attention costs four operations per (query, key) pair, query head and head element. Only sampled tokens,
    one for each sequence, meet the output matrix.
    """
    config = replica.decoder.config
    tokens = shape.sequences * shape.tokens
    context = shape.sequences * (shape.context + shape.tokens)
    kv_bytes = context * config.kv_elements_per_token * replica.decoder.dtype.itemsize
    pairs = shape.sequences * (shape.tokens * shape.context + shape.tokens * (shape.tokens + 1) // 2)
    attention = 4 * pairs * config.num_layers * config.num_heads * config.head_dim
    output = config.vocab_size * config.hidden_size
    body = parameters(replica) - output
    operations = 2 * (body * tokens + output * shape.sequences) + attention
    return Work(weight_bytes(replica) + kv_bytes, operations)


def parameters(replica: EngineReplica) -> int:
    """Elements of all matrices a token is multiplied with, the output matrix included."""
    config = replica.decoder.config
    heads = config.num_heads + config.num_kv_heads
    attention = 2 * heads * config.head_dim * config.hidden_size
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def weight_bytes(replica: EngineReplica) -> int:
    """Bytes of those matrices as they are kept; of the embedding table a step reads single rows only."""
    embedding = replica.decoder.config.vocab_size * replica.decoder.config.hidden_size
    return replica.decoder.weights.nbytes - embedding * replica.decoder.dtype.itemsize


def bandwidth() -> float:
    array = torch.zeros(ARRAY_BYTES // 4, dtype=torch.float32)
    return array.nbytes / best(lambda: array.sum())


def bfloat16_speed() -> float:
    left = torch.rand(MATRIX, MATRIX, dtype=torch.bfloat16)
    right = torch.rand(MATRIX, MATRIX, dtype=torch.bfloat16)
    return 2 * MATRIX**3 / best(lambda: left @ right)


def int8_speed() -> float:
    left = torch.randint(-100, 100, (MATRIX, MATRIX), dtype=torch.int8)
    right = torch.randint(-100, 100, (MATRIX, MATRIX), dtype=torch.int8)
    return 2 * MATRIX**3 / best(lambda: torch._int_mm(left, right))


def best(action: Callable[[], object]) -> float:
    """Seconds of the quickest of the runs that `SECONDS` allow, after one to warm up."""
    action()
    quickest, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        action()
        quickest = min(quickest, time.perf_counter() - began)
    return quickest


if __name__ == "__main__":
    main()
