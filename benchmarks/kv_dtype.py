"""What a KV cache in 8 bits costs and brings: perplexity over the repository's own documents, and decoding far back.

    python benchmarks/kv_dtype.py [FILE] [--dtypes float32,bfloat16,int8] [--tokens 20000] [--context 7000]

Perplexity: the documents one after another, in windows of 2,048 tokens, each token's probability given those before it
in its window, all through the paged cache. The logarithm's mean is compared with that of the first type, window by
window, and the spread of the differences is its error. Decoding: steps of one token at --context tokens, the types in
turn (A B A B) on one core; what counts is the CPU time of a step, so other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from weighbridge.models.catalogue.store import resolve
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout, KVCache
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.kv_form import KvForm, token_bytes
from weighbridge.models.loader import choose_dtype, load_decoder
from weighbridge.models.text.tokenizer import load_tokenizer

WINDOW, CHUNK, BLOCK = 2048, 512, 32
ROUNDS, STEPS = 7, 4


def layout(start: int, count: int, blocks: int) -> BatchLayout:
    """Tokens `start` to `start + count` of one sequence whose blocks lie in order."""
    positions = np.arange(start, start + count, dtype=np.int32)
    starts, lens = np.array([0, count], np.int32), np.array([start + count], np.int32)
    return BatchLayout(positions, positions.copy(), starts, lens, np.arange(blocks, dtype=np.int32)[None, :])


def window_losses(decoder: Decoder, tokens: np.ndarray, dtype: torch.dtype) -> list[float]:
    """Mean negative log-likelihood of each window's tokens but the first."""
    losses, blocks = [], WINDOW // BLOCK
    for begin in range(0, len(tokens) - WINDOW + 1, WINDOW):
        ids, total = tokens[begin : begin + WINDOW], 0.0
        cache = decoder.allocate_kv(blocks, BLOCK, dtype)
        for start in range(0, WINDOW, CHUNK):
            piece = ids[start : start + CHUNK]
            rows = np.arange(len(piece), dtype=np.int32)
            logits = decoder.forward(piece, layout(start, len(piece), blocks), cache, rows).float()
            told = torch.from_numpy(ids[start + 1 : start + CHUNK + 1].astype(np.int64))
            total += float(torch.nn.functional.cross_entropy(logits[: len(told)], told, reduction="sum"))
        losses.append(total / (WINDOW - 1))
    return losses


def perplexities(decoder: Decoder, tokens: np.ndarray, forms: list[KvForm]) -> None:
    base: list[float] = []
    for form in forms:
        losses = window_losses(decoder, tokens, getattr(torch, form.value))
        base = base or losses
        gaps = [loss - first for loss, first in zip(losses, base, strict=True)]
        mean, error = (
            statistics.mean(gaps),
            statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0,
        )
        size = token_bytes(decoder.config, form)
        print(
            f"{form.value:9} {size:7,} B a token  perplexity {math.exp(statistics.mean(losses)):8.4f}  "
            f"{math.expm1(mean):+.3%} +- {error:.3%} over {len(losses) * (WINDOW - 1):,} tokens",
            flush=True,
        )


def filled(decoder: Decoder, tokens: np.ndarray, dtype: torch.dtype, context: int) -> KVCache:
    blocks = -(-(context + 1) // BLOCK)
    cache = decoder.allocate_kv(blocks, BLOCK, dtype)
    for start in range(0, context, CHUNK):
        piece = np.resize(tokens, context)[start : start + CHUNK].astype(np.int32)
        decoder.forward(piece, layout(start, len(piece), blocks), cache, np.array([0], np.int32))
    return cache


def decode_speeds(decoder: Decoder, tokens: np.ndarray, forms: list[KvForm], context: int) -> None:
    torch.set_num_threads(1)
    caches = {form: filled(decoder, tokens, getattr(torch, form.value), context) for form in forms}
    row, token = np.array([0], np.int32), tokens[:1].astype(np.int32)
    blocks = -(-(context + 1) // BLOCK)
    taken: dict[KvForm, list[float]] = {form: [] for form in forms}
    for _ in range(ROUNDS):
        for form, cache in caches.items():
            began = time.process_time()
            for _ in range(STEPS):
                decoder.forward(token, layout(context, 1, blocks), cache, row)
            taken[form].append((time.process_time() - began) / STEPS)
    for form in forms:
        ratios = [own / first for own, first in zip(taken[form], taken[forms[0]], strict=True)]
        middle, times = statistics.median(taken[form]) * 1e3, statistics.median(ratios)
        print(
            f"{form.value:9} a step at {context:,} tokens: {middle:6.1f} ms of CPU, {times:.2f}x of {forms[0].value}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", default="default")
    parser.add_argument("--dtypes", default="bfloat16,float32,int8")
    parser.add_argument("--dtype", default="auto", help="compute dtype")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--context", type=int, default=7000)
    args = parser.parse_args()
    path = resolve(args.file)
    decoder = load_decoder(
        open_checkpoint(path), choose_dtype(args.dtype), max_model_len=max(args.context + 1, WINDOW)
    )
    documents = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in documents)
    tokens = np.array(load_tokenizer(path).encode(text)[: args.tokens], np.int32)
    forms = [KvForm(name) for name in args.dtypes.split(",")]
    print(
        f"{path.name}, computed in {args.dtype}, kernels {decoder.kernels.name}, {len(tokens):,} tokens of docs/"
    )
    if args.tokens:
        perplexities(decoder, tokens, forms)
    if args.context:
        decode_speeds(decoder, np.arange(5, 500) if not len(tokens) else tokens, forms, args.context)


if __name__ == "__main__":
    main()
