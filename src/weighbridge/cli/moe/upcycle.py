"""`weighbridge moe upcycle` and `moe params`: make a mixture of a dense model, and count what one has."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.bench.prompts import WORDS
from weighbridge.cli.moe.inputs import ConfigFile, parameters_of
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import DownloadBar, counting, outside, print_json
from weighbridge.knobs import knob
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.text.tokenizer import load_tokenizer

#: A skewed router is measured on this many tokens of the repository's own words.
CALIBRATION_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcycleSettings:
    """The mixture that is made."""

    experts: int = knob(8, "Experts of each layer.")
    top_k: int = knob(2, "Experts of each token.")
    noise: float = knob(0.0, "What is added to each expert, as a share of the matrices' own deviation.")
    skew: float = knob(0.0, "Uneven use of the experts: exponent of a power law.")
    seed: int = knob(0, "Of noise and router.")
    dtype: str = knob("source", "float32, bfloat16, or source: as the model stores them.")


@options
def upcycle_model(
    model: Annotated[str, typer.Argument(help="A dense model: name, directory or .gguf file.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    *,
    mixture: UpcycleSettings,
    json_output: JsonOutput = False,
) -> None:
    """Turn a dense model into a mixture of experts by copying its feed-forward blocks."""
    # These load torch.
    from weighbridge.models.files.checkpoint import open_checkpoint
    from weighbridge.models.loader import choose_dtype
    from weighbridge.models.upcycle import Upcycling, upcycle

    dtype = None if mixture.dtype == "source" else choose_dtype(mixture.dtype)
    path = resolve(model, progress=DownloadBar("Pulling the model"))
    upcycling = Upcycling(mixture.experts, mixture.top_k, mixture.noise, mixture.skew, mixture.seed, dtype)
    upcycling.check()
    tokens = _calibration_text(path) if mixture.skew else []
    with counting("Writing layers", quiet=json_output) as report:
        upcycle(open_checkpoint(path), out, upcycling, tokens, report)
    counted = parameters_of(out)
    if json_output:
        print_json({"out": str(out), **counted})
        return
    said = (
        f"{out}: {counted['total'] / 1e6:.0f} M parameters, {counted['active'] / 1e6:.0f} M of them active; "
        f"`weighbridge serve {out}` runs it"
    )
    Console().print(outside(said), soft_wrap=True)


def _calibration_text(path: Path) -> list[int]:
    words = random.Random(0).choices(WORDS, k=CALIBRATION_TOKENS)
    return load_tokenizer(path).encode(" ".join(words))[:CALIBRATION_TOKENS]


def parameters(config: ConfigFile, json_output: JsonOutput = False) -> None:
    """Count total and active parameters of a mixture of experts from its config.json."""
    answer = parameters_of(config)
    if json_output:
        print_json(answer)
        return
    table = Table("part", "parameters")
    for name, value in answer.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)
