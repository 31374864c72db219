"""What adapters cost one step of decoding, in CPU time of one thread, so that other work on the machine hardly matters.

    python benchmarks/lora_step.py [MODEL] [--adapters 8] [--rank 16] [--targets attention|all] [--rows 16] [--steps 15]

Steps of the base, of rows that take turns through all adapters, and of rows that all go through one, in turn on one
model; ratios are those of neighbours. Beside them what the bytes of the matrices alone would give.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from lora import targeted
from weighbridge.models.adapters.shelf import AdapterShelf, ShelfSize
from weighbridge.models.any_model import open_model
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.compute.low_rank import NO_SLOT
from weighbridge.models.keeping import Quantize

#: Tokens before the one that is computed, and blocks of the cache for them.
CONTEXT, BLOCK, BLOCKS = 64, 16, 5


def fill(shelf: AdapterShelf, rank: int, dtype: torch.dtype) -> None:
    """Put random matrices into every slot: their numbers do not matter to the time."""
    for parts, matrices in shelf._layers:
        for index, part in enumerate(parts):
            columns = shelf.size.modules[part.module].in_features
            for slot in range(shelf.size.slots):
                down, up = torch.randn(rank, columns) * 0.01, torch.randn(rank, part.rows) * 0.01
                matrices.put(slot, index, down.to(dtype), up.to(dtype))


def layout_of(rows: int) -> BatchLayout:
    """One token of each sequence."""
    tables = np.arange(rows * BLOCKS, dtype=np.int32).reshape(rows, BLOCKS)
    return BatchLayout(
        positions=np.full(rows, CONTEXT, np.int32),
        slots=tables[:, CONTEXT // BLOCK] * BLOCK + CONTEXT % BLOCK,
        query_starts=np.arange(rows + 1, dtype=np.int32),
        context_lens=np.full(rows, CONTEXT + 1, np.int32),
        block_tables=tables,
    )


def measured(decoder: CausalModel, shelf: AdapterShelf, rows: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds of each step of each arm; the first of each, which warms caches, is left out."""
    slots = shelf.size.slots
    arms = {
        "base": [NO_SLOT] * rows,
        f"{slots} adapters": [row % slots for row in range(rows)],
        "one of them": [0] * rows,
    }
    cache, layout = decoder.allocate_kv(rows * BLOCKS, BLOCK), layout_of(rows)
    ids, sampled = np.full(rows, 500, np.int32), np.arange(rows, dtype=np.int32)
    taken: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(steps + 1):
        for arm, owners in arms.items():
            shelf.begin(owners, [1] * rows, rows)
            began = time.process_time()
            decoder.forward(ids, layout, cache, sampled)
            if step:
                taken[arm].append(time.process_time() - began)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", choices=("attention", "all"), default="all")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_model(resolve(args.model))
    decoder = opened.load(torch.bfloat16, Quantize.AUTO, max_model_len=1024, report=None, expert_cache=None)
    base = decoder.weights.nbytes if isinstance(decoder, Decoder) else 0
    modules = targeted(opened, args.targets)
    shelf = opened.adapt(decoder, ShelfSize(args.adapters, args.rank, modules))
    fill(shelf, args.rank, decoder.dtype)
    print(
        f"{opened.path.name}, kernels {decoder.kernels.name}: {args.adapters} adapters of rank {args.rank} on "
        f"{args.targets}, {args.rows} rows; base {base / 1e6:.0f} MB, adapters {shelf.nbytes / 1e6:.0f}"
    )
    if base:
        print(f"by the bytes alone {1 + shelf.nbytes / base:.3f}x")
    taken = measured(decoder, shelf, args.rows, args.steps)
    first = taken["base"]
    for arm, each in taken.items():
        ratios = [one / beside for one, beside in zip(each, first, strict=True)]
        print(
            f"{arm:12} least {min(each) * 1e3:7.1f} ms ({min(each) / min(first):.3f}x), "
            f"median of pairs {statistics.median(ratios):.3f}x"
        )


if __name__ == "__main__":
    main()
