"""Step time against batch size: a mixture of experts beside dense models of its total and of its active size.

    python benchmarks/moe_step_time.py [--layers 30] [--svg docs/measured/moe-step-time.svg] [--json FILE]

All models have SmolLM2-135M's attention and random weights in bfloat16; the mixture has 8 experts of its
feed-forward size and uses 2. Decode steps at context 100, every token at random, median of the repeats; mixtures run
more steps of small batches, so that the experts touched are averaged over some hundred tokens. Two routers: an even
one, and one skewed by a power law of exponent 1. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weighbridge.engine.experts.telemetry import attach
from weighbridge.models.compute.allocator import tune_allocator
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.files.config import ExpertsConfig, ModelConfig, RopeConfig
from weighbridge.models.files.quantized import StoredBlocks
from weighbridge.models.loader import Quantize, load_decoder

WARM_UP = 3  # steps that are not timed
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT, BLOCK = 100, 32
TOKENS = 512  # of each batch size, for the mean of the experts touched
VOCABULARY, HIDDEN, INTERMEDIATE = 4096, 576, 1536
EXPERTS, TOP_K = 8, 2


class RandomCheckpoint:
    """Weights drawn when they are asked for; routers lean so that expert e of a layer has the given score."""

    path = Path("random")

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._generator = torch.Generator().manual_seed(0)

    def names(self) -> list[str]:
        return []

    def tensor(self, name: str) -> torch.Tensor:
        config = self.config
        if "norm" in name:
            return torch.ones(HIDDEN)
        wide = config.experts.intermediate_size if config.experts else config.intermediate_size
        heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        shapes = {"q_proj": (heads, HIDDEN), "k_proj": (kv, HIDDEN), "v_proj": (kv, HIDDEN)}
        shapes |= {"o_proj": (HIDDEN, heads), "gate_proj": (wide, HIDDEN), "up_proj": (wide, HIDDEN)}
        shapes |= {
            "down_proj": (HIDDEN, wide),
            "gate": (EXPERTS, HIDDEN),
            "embed_tokens": (VOCABULARY, HIDDEN),
        }
        rows, columns = shapes[name.removesuffix(".weight").rpartition(".")[2]]
        return torch.randn(rows, columns, generator=self._generator) / columns**0.5

    def blocks(self, name: str) -> StoredBlocks | None:
        return None

    def fingerprint(self) -> str:
        return "random"


def dense(intermediate: int, layers: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        rotary_layers=(True,) * layers,
        sliding_windows=(0,) * layers,
        tie_word_embeddings=True,
    )


def mixture(layers: int) -> ModelConfig:
    experts = ExpertsConfig(EXPERTS, TOP_K, INTERMEDIATE, True, (True,) * layers)
    return replace(dense(INTERMEDIATE, layers), experts=experts)


def skewed(decoder: Decoder) -> Decoder:
    """Add a preference by rank to every router's scores, other experts first in each layer."""
    rng = np.random.default_rng(1)
    for layer in decoder.layers:
        assert isinstance(layer.mlp, SparseMlp)
        router = layer.mlp.router
        lean = torch.from_numpy(rng.permutation(-np.log(np.arange(1.0, EXPERTS + 1)))).float()
        plain = router.logits
        router.logits = lambda x, plain=plain, lean=lean: plain(x) + lean  # type: ignore[method-assign]
    return decoder


def layout(batch: int) -> BatchLayout:
    blocks = CONTEXT // BLOCK + 1
    tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
    positions = np.full(batch, CONTEXT - 1, np.int32)
    return BatchLayout(
        positions=positions,
        slots=(tables[:, (CONTEXT - 1) // BLOCK] * BLOCK + (CONTEXT - 1) % BLOCK).astype(np.int32),
        query_starts=np.arange(batch + 1, dtype=np.int32),
        context_lens=np.full(batch, CONTEXT, np.int32),
        block_tables=tables,
    )


def measure(decoder: Decoder, repeats: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    telemetry = attach(decoder)
    cache = decoder.allocate_kv(max(BATCHES) * (CONTEXT // BLOCK + 1), BLOCK)
    rows = []
    for batch in BATCHES:
        where, seconds, touched = layout(batch), [], []
        steps = repeats if telemetry is None else max(repeats, min(TOKENS // batch, 128))
        for turn in range(steps + WARM_UP):
            ids = rng.integers(0, VOCABULARY, batch).astype(np.int32)
            started = time.perf_counter()
            decoder.forward(ids, where, cache, np.arange(batch, dtype=np.int32))
            if turn >= WARM_UP:
                seconds.append(time.perf_counter() - started)
            if telemetry is not None:
                touched.append(telemetry.record(where, np.arange(batch, dtype=np.int32)))
        row: dict[str, float] = {"batch": batch, "ms": statistics.median(seconds) * 1e3}
        if telemetry is not None:
            row["touched"] = statistics.fmean(touched) / len(telemetry.layers)
        rows.append(row)
    if telemetry is not None:
        predicted = {row["batch"]: row["predicted"] for row in telemetry.report()["coverage"]}
        for row in rows:
            row["predicted"] = predicted[int(row["batch"])]
    return rows


def series(layers: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    def loaded(config: ModelConfig) -> Decoder:
        return load_decoder(RandomCheckpoint(config), torch.bfloat16, Quantize.NONE)

    makers: dict[str, Callable[[], Decoder]] = {
        "dense, active size": lambda: loaded(dense(TOP_K * INTERMEDIATE, layers)),
        "mixture, even": lambda: loaded(mixture(layers)),
        "mixture, skewed": lambda: skewed(loaded(mixture(layers))),
        "dense, total size": lambda: loaded(dense(EXPERTS * INTERMEDIATE, layers)),
    }
    return {name: measure(make(), repeats) for name, make in makers.items()}


def draw(measured: dict[str, list[dict[str, float]]]) -> str:
    """Both axes logarithmic: milliseconds above, experts touched per layer below."""
    colours = dict(zip(measured, ("#6b7280", "#2563eb", "#d97706", "#111827"), strict=True))
    slowest = max(row["ms"] for rows in measured.values() for row in rows)
    quickest = min(row["ms"] for rows in measured.values() for row in rows)
    left, width, top, height = 70, 520, 46, 260

    def x(batch: float) -> float:
        return left + width * np.log2(batch) / np.log2(BATCHES[-1])

    def y(ms: float) -> float:
        share = np.log(ms / quickest) / np.log(slowest / quickest)
        return float(top + height * (1 - share))

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 480" font-family="sans-serif" font-size="13">',
        '<rect width="760" height="480" fill="white"/>',
        '<text x="70" y="24" font-size="16">One decode step: 8 experts, 2 used, beside dense models</text>',
    ]
    for ms in (2, 5, 10, 20, 50, 100, 200, 500):
        if quickest <= ms <= slowest:
            parts.append(f'<path d="M{left} {y(ms):.1f}h{width}" stroke="#e5e7eb"/>')
            parts.append(f'<text x="{left - 8}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms} ms</text>')
    parts += [f'<text x="{x(batch):.1f}" y="330" text-anchor="middle">{batch}</text>' for batch in BATCHES]
    parts.append(f'<text x="{left + width / 2}" y="350" text-anchor="middle">sequences in the batch</text>')
    label_at: list[float] = []
    for name, rows in sorted(measured.items(), key=lambda item: item[1][-1]["ms"]):
        line = " ".join(f"{x(row['batch']):.1f},{y(row['ms']):.1f}" for row in rows)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2.5"/>')
        at = y(rows[-1]["ms"]) + 4
        while any(abs(at - other) < 15 for other in label_at):
            at -= 4
        label_at.append(at)
        parts.append(f'<text x="{left + width + 8}" y="{at:.1f}" fill="{colours[name]}">{name}</text>')
    parts.append('<text x="70" y="380">experts touched per layer (dots: predicted from the counts)</text>')
    for name, rows in measured.items():
        if "touched" not in rows[0]:
            continue
        line = " ".join(f"{x(row['batch']):.1f},{470 - 9 * row['touched']:.1f}" for row in rows)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(row["batch"]):.1f}" cy="{470 - 9 * row["predicted"]:.1f}" r="3.5" '
            f'fill="{colours[name]}"/>'
            for row in rows
        ]
    for touched in (2, 5, 8):
        at = 470 - 9 * touched
        parts.append(f'<text x="{left - 8}" y="{at + 4}" text-anchor="end">{touched}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tune_allocator()
    measured = series(arguments.layers, arguments.repeats)
    print(f"{'milliseconds of a step':24}", *(f"{batch:>7}" for batch in BATCHES))
    for name, rows in measured.items():
        print(f"{name:24}", *(f"{row['ms']:7.1f}" for row in rows))
        if "touched" in rows[0]:
            print(f"{'  experts touched':24}", *(f"{row['touched']:7.2f}" for row in rows))
            print(f"{'  predicted':24}", *(f"{row['predicted']:7.2f}" for row in rows))
    if arguments.svg:
        arguments.svg.write_text(draw(measured), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
