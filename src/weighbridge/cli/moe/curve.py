"""`weighbridge moe curve`: what a batch costs a mixture of experts, and how many of them it touches."""

from __future__ import annotations

import itertools
import random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.bench.prompts import WORDS
from weighbridge.cli.options import JsonOutput, Only, options
from weighbridge.cli.terminal import counting, print_json
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput


@options
def curve(
    model: Annotated[str, typer.Argument(help="A mixture of experts: directory or name.")],
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,2,4,8,16,32,64",
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")] = 100,
    *,
    engine: Annotated[EngineSettings, Only({"quantize"})],
    json_output: JsonOutput = False,
) -> None:
    """Measure step time and experts touched against batch size, and show where the cliff is.

    Sequences are random words, continued by sampling. The prediction knows how often each expert was used and how
    many experts two sequences of a step have in common.
    """
    from weighbridge.cli.serve.model import load  # these load torch
    from weighbridge.engine.experts.curve import measure_curve, tokens_per_sequence

    sizes = _sizes(batches)
    replica = load(model, model, engine, quiet=json_output)
    if replica.runner.experts is None:
        raise BadInput(f"{model} is a dense model: its step time has no experts in it", param="model")
    block_size, room = replica.settings.block_size, tokens_per_sequence(sizes, context)
    if max(sizes) * -(-room // block_size) > replica.num_blocks or room > replica.max_model_len:
        raise BadInput("the KV cache is too small for this batch and context: use smaller ones")
    texts = [_text(replica.tokenizer, context, number) for number in range(max(sizes))]
    with counting("Measuring", quiet=json_output) as report:
        points, alike = measure_curve(replica.runner, texts, sizes, block_size, report)
    rows = [_row(point) for point in points]
    worst = cliff(rows)
    if json_output:
        print_json({"curve": rows, "cliff": worst, "correlation": alike})
        return
    _print_curve(rows, worst)


def _row(point: Any) -> dict[str, float]:
    """A point of the curve, as JSON shows it."""
    return {
        "batch": point.batch,
        "ms": point.seconds * 1e3,
        "ms_per_token": point.seconds * 1e3 / point.batch,
        "experts_per_layer": point.touched,
        "predicted": point.predicted,
        "iterations": point.iterations,
    }


def _text(tokenizer: Any, length: int, number: int) -> list[int]:
    """Token ids of random words, other ones for every sequence."""
    rng = random.Random(number)
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += tokenizer.encode(" " + " ".join(rng.choices(WORDS, k=length)))
    return tokens[:length]


def cliff(rows: list[dict[str, float]]) -> int | None:
    """The batch size before which the step time grows most, as a ratio."""
    ratios = [
        (after["ms"] / before["ms"], int(after["batch"]))
        for before, after in itertools.pairwise(rows)
        if after["batch"] > before["batch"]
    ]
    return max(ratios)[1] if ratios else None


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise BadInput(f"--batches {text!r}: write sizes of at least 1 with commas, as in 1,4,16")
    return sizes


def _print_curve(rows: list[dict[str, float]], worst: int | None) -> None:
    table = Table("batch", "step ms", "ms per token", "experts per layer", "predicted", "")
    longest = max(row["ms"] for row in rows)
    for row in rows:
        table.add_row(
            f"{row['batch']:.0f}",
            f"{row['ms']:.1f}",
            f"{row['ms_per_token']:.2f}",
            f"{row['experts_per_layer']:.3f}",
            f"{row['predicted']:.3f} ({row['predicted'] / row['experts_per_layer'] - 1.0:+.1%})",
            "█" * max(1, round(40 * row["ms"] / longest)),
        )
    console = Console()
    console.print(table)
    if worst is not None:
        console.print(f"the step grows most on the way to batch {worst}: that is the cliff")
