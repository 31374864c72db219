"""Time of the kernels for one model's shape: ours, the torch reference, and torch's fused attention.

    python benchmarks/kernels.py [--dtype bfloat16] [--context 200] [--threads 2]

Attention times are of all layers together, as a step pays them; the caches of all layers are distinct memory,
so little stays in the processor's cache from one step to the next. Torch's own reads contiguous copies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from weighbridge.models.compute.kernels import BatchLayout, Kernels, KVCache, ReferenceKernels, load_kernels


@dataclass(frozen=True)
class Shape:
    """SmolLM2-135M."""

    layers: int = 30
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    intermediate: int = 1536
    vocab: int = 49152
    block_size: int = 32

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPE = Shape()


def make_layout(sequences: int, queries: int, context: int, seed: int = 0) -> BatchLayout:
    """`sequences` times `queries` new tokens behind context - queries old ones, in scattered blocks."""
    size = SHAPE.block_size
    blocks = -(-context // size)
    order = np.random.default_rng(seed).permutation(sequences * blocks).astype(np.int32)
    tables = order.reshape(sequences, blocks)
    positions = np.arange(context - queries, context, dtype=np.int32)
    slots = tables[:, positions // size] * size + positions % size
    starts = np.arange(0, sequences * queries + 1, queries, dtype=np.int32)
    return BatchLayout(
        np.tile(positions, sequences),
        slots.astype(np.int32).ravel(),
        starts,
        np.full(sequences, context, np.int32),
        tables,
    )


def fill_cache(
    kernels: Kernels, cache: KVCache, layout: BatchLayout, context: int, dtype: torch.dtype
) -> None:
    """Write every slot of the batch's blocks in every layer, so that no page is an untouched one."""
    sequences = len(layout.context_lens)
    whole = make_layout(sequences, context, context)
    qkv = torch.randn(sequences * context, SHAPE.qkv_width).to(dtype)
    for layer in range(SHAPE.layers):
        kernels.rope_and_write(qkv, cache, layer, whole, None, SHAPE.heads, None, None, 1e-5)


def milliseconds(run: Callable[[], None], repeats: int) -> float:
    run()
    best = float("inf")  # the quietest run: the machine may be doing other things as well
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def attention_ms(
    kernels: Kernels, sequences: int, queries: int, context: int, dtype: torch.dtype, repeats: int
) -> float:
    """All layers of one step."""
    layout = make_layout(sequences, queries, context)
    cache = kernels.allocate_kv(
        SHAPE.layers, layout.block_tables.size, SHAPE.block_size, SHAPE.kv_heads, SHAPE.head_dim, dtype
    )
    fill_cache(kernels, cache, layout, context, dtype)
    qkv = torch.randn(sequences * queries, SHAPE.qkv_width).to(dtype)
    out = torch.empty(sequences * queries, SHAPE.heads * SHAPE.head_dim, dtype=dtype)

    def step() -> None:
        for layer in range(SHAPE.layers):
            kernels.paged_attention(out, qkv, cache, layer, layout, SHAPE.heads, SHAPE.head_dim**-0.5, 0)

    return milliseconds(step, repeats)


def sdpa_ms(sequences: int, queries: int, context: int, dtype: torch.dtype, repeats: int) -> float:
    """torch's fused attention on contiguous keys and values, one pair per layer."""
    shape = (SHAPE.layers, sequences, SHAPE.kv_heads, context, SHAPE.head_dim)
    keys, values = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    query = torch.randn(sequences, SHAPE.heads, queries, SHAPE.head_dim).to(dtype)
    causal = queries > 1

    def step() -> None:
        for layer in range(SHAPE.layers):
            torch.nn.functional.scaled_dot_product_attention(
                query, keys[layer], values[layer], is_causal=causal, enable_gqa=True
            )

    return milliseconds(step, repeats)


def report_attention(kernels: Kernels, dtype: torch.dtype, context: int, prompt: int, repeats: int) -> None:
    element = 2 if dtype == torch.bfloat16 else 4
    names = ("ours ms", "GB/s", "GFLOP/s", "reference", "sdpa")
    print(f"{'attention, all layers':34}" + "".join(f"{name:>10}" for name in names))
    cases = [(n, 1, context) for n in (1, 16, 64)] + [(1, 1, 8 * context), (1, prompt, prompt)]
    for sequences, queries, length in cases:
        ours = attention_ms(kernels, sequences, queries, length, dtype, repeats)
        slow = max(1, repeats // 10)
        reference = attention_ms(ReferenceKernels(), sequences, queries, length, dtype, slow)
        sdpa = sdpa_ms(sequences, queries, length, dtype, slow)
        pairs = queries * length - queries * (queries - 1) // 2
        read = SHAPE.layers * sequences * length * 2 * SHAPE.kv_heads * SHAPE.head_dim * element
        flops = SHAPE.layers * sequences * pairs * SHAPE.heads * SHAPE.head_dim * 4
        name = f"{sequences} x {queries} tokens, context {length}"
        numbers = (ours, read / ours / 1e6, flops / ours / 1e6, reference, sdpa)
        print(f"{name:34}" + "".join(f"{number:10.1f}" for number in numbers))


def elementwise_calls(kernels: Kernels, tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    layout = make_layout(tokens, 1, 32)
    cache = kernels.allocate_kv(
        1, layout.block_tables.size, SHAPE.block_size, SHAPE.kv_heads, SHAPE.head_dim, dtype
    )
    hidden, residual = torch.randn(tokens, SHAPE.hidden).to(dtype), torch.randn(tokens, SHAPE.hidden)
    weight, out = torch.rand(SHAPE.hidden), torch.empty(tokens, SHAPE.hidden, dtype=dtype)
    qkv = torch.randn(tokens, SHAPE.qkv_width).to(dtype)
    cos_sin = torch.rand(64, SHAPE.head_dim)
    gate_up = torch.randn(tokens, 2 * SHAPE.intermediate).to(dtype)
    product = torch.empty(tokens, SHAPE.intermediate, dtype=dtype)
    logits = torch.randn(min(tokens, 64), SHAPE.vocab)
    table, rows = torch.randn(1000, SHAPE.hidden).to(dtype), np.arange(tokens, dtype=np.int32) % 1000
    return {
        "rms_norm": lambda: kernels.rms_norm(out, residual, weight, 1e-5),
        "add_rms_norm": lambda: kernels.add_rms_norm(out, residual, hidden, weight, 1e-5),
        "rope_and_write": lambda: kernels.rope_and_write(
            qkv, cache, 0, layout, cos_sin, SHAPE.heads, None, None, 1e-5
        ),
        "silu_mul": lambda: kernels.silu_mul(product, gate_up),
        "gather_rows": lambda: kernels.gather_rows(residual, table, rows),
        "argmax": lambda: kernels.argmax(logits),
    }


def report_elementwise(kernels: Kernels, dtype: torch.dtype, repeats: int) -> None:
    counts = (1, 16, 64, 2048)
    print(f"\n{'one call, microseconds':24}" + "".join(f"{f'{n} tokens':>22}" for n in counts))
    print(f"{'':24}" + "".join(f"{'ours':>11}{'reference':>11}" for _ in counts))
    tables = [
        (elementwise_calls(kernels, n, dtype), elementwise_calls(ReferenceKernels(), n, dtype))
        for n in counts
    ]
    for name in tables[0][0]:
        row = ""
        for ours, reference in tables:
            for calls in (ours, reference):
                row += f"{1e3 * milliseconds(lambda run=calls[name]: run(), repeats):11.1f}"  # type: ignore[misc]
        print(f"{name:24}{row}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    kernels = load_kernels()
    print(f"kernels {kernels.name}, {args.threads} threads, {args.dtype}\n")
    report_attention(kernels, dtype, args.context, args.prompt, args.repeats)
    report_elementwise(kernels, dtype, 5 * args.repeats)


if __name__ == "__main__":
    main()
