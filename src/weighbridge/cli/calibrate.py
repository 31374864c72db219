"""`weighbridge calibrate`: fit the step cost to this machine."""

from __future__ import annotations

from typing import Annotated

from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput, Model, Only, options
from weighbridge.cli.terminal import counting, outside, print_json
from weighbridge.engine.settings import EngineSettings


@options
def calibrate(
    model: Model = None,
    *,
    engine: Annotated[EngineSettings, Only({"dtype", "quantize", "threads"})],
    json_output: JsonOutput = False,
) -> None:
    """Measure iterations of every size on this machine and store the step cost that fits them."""
    from weighbridge.cli.serve.model import load  # loads torch

    replica = load(model or "default", model or "default", engine, quiet=json_output)
    with counting("Measuring iterations", quiet=json_output) as report:
        cost, samples, file = replica.calibrate(report)
    errors = sorted(abs(cost.predict(s) / s.seconds - 1) for s in samples)
    median_error = errors[len(errors) // 2]
    if json_output:
        print_json(
            {
                "step_cost": cost.as_dict(),
                "median_relative_error": median_error,
                "samples": [
                    {
                        "tokens": s.tokens,
                        "sequences": s.sequences,
                        "context_tokens": s.context_tokens,
                        "prompt_pairs": s.prompt_pairs,
                        "seconds": s.seconds,
                        "predicted": cost.predict(s),
                    }
                    for s in samples
                ],
                "file": str(file),
            }
        )
        return
    table = Table("tokens", "sequences", "context", "prompt pairs", "measured ms", "fitted ms")
    for s in samples:
        table.add_row(
            str(s.tokens),
            str(s.sequences),
            str(s.context_tokens),
            str(s.prompt_pairs),
            f"{s.seconds * 1e3:.1f}",
            f"{cost.predict(s) * 1e3:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(outside(f"median error {median_error:.1%}; stored in {file}"), soft_wrap=True)
