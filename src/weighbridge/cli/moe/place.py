"""`weighbridge moe place`: experts on GPUs, so that measured loads spread evenly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.moe.inputs import Gpus, SlotSettings, read_loads, read_text
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.planner.experts.placement import ExpertPlacement
from weighbridge.planner.experts.report import DEEPSEEK_V3_EXPERT_BYTES, place


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSettings:
    """How a placement is found, and what getting there costs."""

    method: str = knob(
        "balance", "balance: no expert twice on a GPU, local search. eplb: DeepSeek's as it is."
    )
    current: Path | None = knob(None, "What the slots hold now: JSON with physical_to_logical.")
    expert_bytes: int | None = knob(
        None, "Size of one expert of one layer; none: DeepSeek-V3's, 44 MB.", unit="bytes"
    )
    expert_seconds: float | None = knob(
        None,
        "Time of all experts in a step, in ms, to tell when moving pays.",
        flag="--expert-ms",
        unit="ms",
        min=0.0,
    )
    link: int = knob(50 * 10**9, "What a GPU can fetch in a second.", unit="bytes")


@options
def place_experts(
    loads: Annotated[Path, typer.Option(help="Tokens per expert: JSON or CSV, or what /v1/experts answers.")],
    gpus: Gpus,
    *,
    slots: SlotSettings,
    move: MoveSettings,
    json_output: JsonOutput = False,
) -> None:
    """Place experts on GPUs so that measured loads spread evenly."""
    measured = read_loads(loads)
    experts = measured.loads.shape[1]
    answer = place(
        measured,
        slots.devices(gpus, experts),
        method=move.method,
        current=_current(move.current, experts) if move.current else None,
        expert_bytes=move.expert_bytes or DEEPSEEK_V3_EXPERT_BYTES,
        expert_seconds=move.expert_seconds,
        bytes_per_second=move.link,
    )
    if json_output:
        print_json(answer)
    else:
        _print_placement(answer, gpus)


def _current(path: Path, experts: int) -> ExpertPlacement:
    try:
        value = json.loads(read_text(path, "--current"))
        rows = np.array(value["physical_to_logical"] if isinstance(value, dict) else value, dtype=np.int64)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        raise BadInput(f"{path} must hold physical_to_logical: a list of expert numbers per layer") from None
    if rows.ndim != 2 or rows.size == 0 or rows.min() < 0:
        raise BadInput(f"{path} must hold physical_to_logical: a list of expert numbers per layer")
    return ExpertPlacement.of(rows, experts)


def _print_placement(answer: dict[str, Any], gpus: int) -> None:
    console = Console()
    table = Table("layer", "balancedness", *(f"GPU {index}" for index in range(min(gpus, 8))))
    for index, row in enumerate(answer["physical_to_logical"]):
        slots = len(row) // gpus
        cells = (" ".join(map(str, row[gpu * slots : (gpu + 1) * slots])) for gpu in range(min(gpus, 8)))
        table.add_row(str(index), f"{answer['balancedness_per_layer'][index]:.3f}", *cells)
    console.print(table)
    if gpus > 8:
        console.print(f"[dim]GPUs 8 to {gpus - 1} are in --json[/]")
    console.print(
        f"balancedness {answer['balancedness_before']:.3f} before, [bold]{answer['balancedness_after']:.3f}[/] "
        f"after; {answer['moved_bytes'] / 1e9:.2f} GB to move, "
        f"{answer['redundant_bytes_per_gpu'] / 1e9:.2f} GB of redundant experts per GPU",
        soft_wrap=True,
    )
    steps = answer.get("pays_after_steps")
    if steps is not None:
        console.print(f"moving takes {answer['moving_seconds']:.2f} s and pays after {steps:,.0f} steps")
    elif "pays_after_steps" in answer:
        console.print("the new placement is not faster: stay with the current one")
