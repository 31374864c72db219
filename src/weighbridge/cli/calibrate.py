"""`weighbridge calibrate`: fit the step cost to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput, Model, Only, options
from weighbridge.cli.terminal import counting, outside, print_json
from weighbridge.cost import Sample, StepCost
from weighbridge.engine.settings import EngineSettings


@options
def calibrate(
    model: Model = None,
    *,
    engine: Annotated[EngineSettings, Only({"dtype", "quantize", "kv_dtype", "threads"})],
    json_output: JsonOutput = False,
) -> None:
    """Measure iterations of every size on this machine and store the step cost that fits them."""
    from weighbridge.cli.serve.model import load  # loads torch

    replica = load(model or "default", model or "default", engine, quiet=json_output)
    with counting("Measuring iterations", quiet=json_output) as report:
        cost, samples, file = replica.calibrate(report)
    errors = sorted(abs(cost.predict(sample) / sample.seconds - 1) for sample in samples)
    median = errors[len(errors) // 2]
    if json_output:
        print_json(_as_json(cost, samples, median, file))
    else:
        console = Console()
        console.print(_table(cost, samples))
        console.print(outside(f"median error {median:.1%}; stored in {file}"), soft_wrap=True)


def _as_json(cost: StepCost, samples: list[Sample], median: float, file: Path) -> dict[str, Any]:
    return {
        "step_cost": cost.as_dict(),
        "median_relative_error": median,
        "samples": [
            {
                "tokens": sample.tokens,
                "sequences": sample.sequences,
                "context_tokens": sample.context_tokens,
                "prompt_pairs": sample.prompt_pairs,
                "seconds": sample.seconds,
                "predicted": cost.predict(sample),
            }
            for sample in samples
        ],
        "file": str(file),
    }


def _table(cost: StepCost, samples: list[Sample]) -> Table:
    table = Table("tokens", "sequences", "context", "prompt pairs", "measured ms", "fitted ms")
    for sample in samples:
        counts = (sample.tokens, sample.sequences, sample.context_tokens, sample.prompt_pairs)
        times = (f"{sample.seconds * 1e3:.1f}", f"{cost.predict(sample) * 1e3:.1f}")
        table.add_row(*map(str, counts), *times)
    return table
