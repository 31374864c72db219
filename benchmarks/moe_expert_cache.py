"""The expert cache at 25, 50 and 75 % of the experts: same output, tokens per second, hit rate beside a plain LRU.

    weighbridge moe upcycle default --noise 0.3 --skew 1.0 --dtype bfloat16 --out /tmp/moe
    python benchmarks/moe_expert_cache.py /tmp/moe [--quantize int8] [--tokens 96]

A prompt of 16 tokens in one step, then greedy decoding: of one sequence, then of 8 at once. "identical": every token
equals that of the model wholly in memory. Also the share of a step that telemetry takes. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from weighbridge.engine.experts.telemetry import attach
from weighbridge.models.compute.allocator import tune_allocator
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, choose_dtype, load_decoder

BLOCK, PROMPT = 32, 16


def layout(tables: np.ndarray, start: int, count: int) -> BatchLayout:
    """`count` tokens of every sequence from position `start` on."""
    batch = len(tables)
    positions = np.tile(np.arange(start, start + count, dtype=np.int32), batch)
    blocks = np.repeat(tables, count, axis=0)[np.arange(batch * count), positions // BLOCK]
    return BatchLayout(
        positions=positions,
        slots=(blocks * BLOCK + positions % BLOCK).astype(np.int32),
        query_starts=np.arange(batch + 1, dtype=np.int32) * count,
        context_lens=np.full(batch, start + count, np.int32),
        block_tables=tables,
    )


def decode(decoder: Decoder, batch: int, tokens: int) -> tuple[np.ndarray, float, float]:
    """Token ids [batch, tokens], tokens per second, and seconds that telemetry took."""
    telemetry = attach(decoder)
    assert telemetry is not None
    blocks = -(-(PROMPT + tokens) // BLOCK)
    cache = decoder.allocate_kv(batch * blocks, BLOCK)
    tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
    ids = np.random.default_rng(0).integers(100, 4000, (PROMPT, batch)).astype(np.int32)
    produced, counting, started = [], 0.0, 0.0
    current = ids.T.reshape(-1)
    for step in range(tokens + 1):
        count = 1 if step else PROMPT  # of each sequence
        start = PROMPT + step - 1 if step else 0
        where = layout(tables, start, count)
        rows = np.arange(1, batch + 1, dtype=np.int32) * count - 1
        logits = decoder.forward(current, where, cache, rows)
        before = time.perf_counter()
        telemetry.record(where, rows)
        counting += time.perf_counter() - before
        current = logits.argmax(dim=1).numpy().astype(np.int32)
        if step:
            produced.append(current)
        else:
            started, counting = time.perf_counter(), 0.0
    seconds = time.perf_counter() - started
    return np.stack(produced, axis=1), batch * tokens / seconds, counting / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    tune_allocator()
    checkpoint, dtype = open_checkpoint(arguments.model), choose_dtype("auto")
    scheme = Quantize(arguments.quantize)
    whole = load_decoder(checkpoint, dtype, scheme)
    total = sum(layer.mlp.experts.nbytes for layer in whole.layers if isinstance(layer.mlp, SparseMlp))
    expected = {batch: decode(whole, batch, arguments.tokens) for batch in (1, 8)}
    for batch, (_, speed, share) in expected.items():
        print(f"resident, batch {batch}: {speed:.1f} tokens/s; telemetry {share:.2%} of the time")
    torch.set_grad_enabled(False)
    del whole
    for kept in (0.25, 0.5, 0.75):
        for batch in (1, 8):
            decoder = load_decoder(checkpoint, dtype, scheme, expert_cache=int(total * kept))
            telemetry = attach(decoder)
            tokens, speed, _ = decode(decoder, batch, arguments.tokens)
            assert telemetry is not None
            assert telemetry.cache is not None
            report = telemetry.cache.report()
            print(
                f"{kept:.0%}, batch {batch}: {speed:.1f} tokens/s, hit rate {report['hit_rate']:.3f} "
                f"(LRU {report['lru_hit_rate']:.3f}), {report['prefetched']} of {report['misses']} misses loaded "
                f"ahead, identical: {bool((tokens == expected[batch][0]).all())}",
                flush=True,
            )


if __name__ == "__main__":
    main()
