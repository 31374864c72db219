"""`weighbridge calibrate`: fit the step cost to this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import DownloadBar, counting, print_json


def calibrate(
    model: Annotated[str | None, typer.Argument(help="Model name or path; none: the default model.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "auto",
    quantize: Annotated[
        str, typer.Option(help="auto (as the file keeps them), none, int8 or int4.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="Compute threads; none: one per core.", min=1)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure iterations of every size on this machine and store the step cost that fits them."""
    from weighbridge.engine.build import build_replica
    from weighbridge.engine.settings import EngineSettings
    from weighbridge.models.files.store import resolve

    path = resolve(model or "default", progress=DownloadBar("Pulling the model"))
    with counting("Packing layers", quiet=json_output) as report:
        replica = build_replica(
            path,
            model or "default",
            EngineSettings(),
            dtype=dtype,
            quantize=quantize,
            threads=threads,
            report=report,
        )
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
    console.print(f"median error {median_error:.1%}; stored in {file}", soft_wrap=True)
