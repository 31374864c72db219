"""Where a step cost comes from: a file of `weighbridge calibrate`, or a table of timings to fit."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from weighbridge.cost import Sample, StepCost, fit
from weighbridge.errors import BadInput

_FIELDS = tuple(field.name for field in fields(StepCost) if field.default is MISSING)
_OPTIONAL = tuple(field.name for field in fields(StepCost) if field.default is not MISSING)

#: Names that a column of a timing table may have, best first.
_COLUMNS = {
    "tokens": ("tokens", "batch_tokens", "num_tokens"),
    "sequences": ("sequences", "batch_size", "num_sequences", "batch"),
    "context_tokens": ("context_tokens", "pairs", "context"),
    "seconds": ("seconds", "step_seconds", "time_s"),
}


def read_step_cost(path: Path) -> StepCost:
    """Return the step cost in a JSON file: its five fields at the top, or under `step_cost` as `calibrate` writes them.

    Raises BadInput naming the field that is missing or no number of seconds.
    """
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", param="step_cost") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}", param="step_cost") from error
    if isinstance(record, dict) and isinstance(record.get("step_cost"), dict):
        record = record["step_cost"]
    if not isinstance(record, dict):
        raise BadInput(f"{path}: expected an object with {', '.join(_FIELDS)}", param="step_cost")
    return step_cost_of(record, str(path))


def step_cost_of(record: Mapping[str, object], where: str) -> StepCost:
    """Return the step cost in `record`. Raises BadInput, naming `where`, unless every field is a number of seconds
    and one of them is not 0."""
    values = {}
    for name in (*_FIELDS, *(name for name in _OPTIONAL if name in record)):
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
            raise BadInput(
                f"{where}: {name} is {value!r}, but must be a number of seconds, 0 or more; "
                f"a step cost has {', '.join(_FIELDS)}",
                param="step_cost",
            )
        values[name] = float(value)
    cost = StepCost(**values)
    if cost.seconds(1, 1, 1) <= 0.0:
        raise BadInput(f"{where}: an iteration that takes no time cannot be simulated", param="step_cost")
    return cost


def fit_timings(path: Path) -> StepCost:
    """Fit a CSV of measured iterations: columns tokens, sequences, context_tokens and seconds (or `ms`).

    A column prompt_pairs (see `cost.attention`) may price the pairs of prompts apart; without one, context_tokens
    are all (query, key) pairs, at one price.

    Raises BadInput naming the column or the row that is wrong.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", param="fit") from error
    if not rows:
        raise BadInput(f"{path} holds no timings", param="fit")
    samples = [_sample(row, f"{path}:{number}") for number, row in enumerate(rows, 2)]
    try:
        return fit(samples)
    except ValueError as error:
        raise BadInput(f"{path}: {error}", param="fit") from error


def _sample(row: Mapping[str, str], where: str) -> Sample:
    factor = 1.0
    columns = dict(_COLUMNS)
    if not any(name in row for name in columns["seconds"]):
        columns["seconds"], factor = ("ms", "milliseconds", "latency_ms"), 1e-3
    tokens, sequences, context, seconds = (_number(row, columns[name], name, where) for name in columns)
    if tokens < 1 or sequences < 1 or seconds <= 0.0:
        raise BadInput(f"{where}: tokens and sequences must be at least 1 and the time above 0", param="fit")
    pairs = _number(row, ("prompt_pairs",), "prompt_pairs", where) if "prompt_pairs" in row else 0.0
    return Sample(
        round(tokens), round(sequences), round(context), seconds * factor, prompt_pairs=round(pairs)
    )


def _number(row: Mapping[str, str], names: Sequence[str], wanted: str, where: str) -> float:
    for name in names:
        if name in row:
            try:
                value = float(row[name])
            except (TypeError, ValueError):
                value = math.nan
            if not 0.0 <= value < math.inf:
                raise BadInput(f"{where}: {name} is {row[name]!r}, not a number of 0 or more", param="fit")
            return value
    raise BadInput(f"{where}: no column for {wanted}; name it {' or '.join(names)}", param="fit")
