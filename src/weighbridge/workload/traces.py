"""Recorded workloads: Azure CSV, Mooncake JSONL, plain JSONL, and tickets, as requests by time."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.workload.requests import TraceRow

#: More tokens than any request has: such a number is a mistake, and a simulation of it would fill the memory.
_MAX_TOKENS = 100_000_000


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How a trace is changed: `speed` divides its times, `scale_*` multiply lengths, `max_*` cut them.

    `smear`: timestamps rounded to this many seconds are spread evenly over them (Mooncake's are, to 3).
    """

    speed: float = 1.0
    limit: int | None = None
    scale_prompt: float = 1.0
    scale_output: float = 1.0
    max_prompt: int | None = None
    max_output: int | None = None
    smear: bool = False


def read_rows(path: Path, options: TraceOptions | None = None) -> list[TraceRow]:
    """Read requests in order of time, the first at 0. Raises BadInput naming the file, the line and what is wrong.

    A `.csv` file has Azure's columns. JSON lines are Mooncake's (`timestamp` in ms, `input_length`,
    `output_length`, `hash_ids`) or plain (`at` in seconds, `prompt_tokens`, `output_tokens`, and optionally
    `max_tokens`, `tenant`, `priority`, `deadline`, `session`), or the tickets of a live server
    (`weighbridge serve --tickets FILE`), of which those count that produced something.
    """
    options = options or TraceOptions()
    try:
        rows = _azure(path) if path.suffix == ".csv" else _json_lines(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", param="trace") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8: {error.reason}", param="trace") from error
    if not rows:
        raise BadInput(f"{path} holds no requests", param="trace")
    return changed(rows, options)


def changed(rows: Sequence[TraceRow], options: TraceOptions) -> list[TraceRow]:
    """Return `rows` by time, moved to 0 and changed as `options` say. Lengths stay at least 1."""
    rows = sorted(rows, key=lambda row: row.at)[: options.limit]
    times = _smeared([row.at for row in rows]) if options.smear else [row.at for row in rows]
    prompt = _scaling(options.scale_prompt, options.max_prompt)
    output = _scaling(options.scale_output, options.max_output)
    return [
        replace(
            row,
            at=(at - times[0]) / options.speed,
            prompt_tokens=prompt(row.prompt_tokens),
            output_tokens=output(row.output_tokens),
        )
        for at, row in zip(times, rows, strict=True)
    ]


def _scaling(factor: float, longest: int | None) -> Callable[[int], int]:
    def scaled(length: int) -> int:
        wanted = max(1, round(length * factor))
        return wanted if longest is None else min(wanted, longest)

    return scaled


def _smeared(times: Sequence[float]) -> list[float]:
    """Spread equal times evenly up to the next different time, those at the end as far as the others were."""
    spread, index = list(times), 0
    width = 0.0
    while index < len(times):
        end = index
        while end < len(times) and times[end] == times[index]:
            end += 1
        width = times[end] - times[index] if end < len(times) else width
        for place in range(index, end):
            spread[place] = times[index] + width * (place - index) / (end - index)
        index = end
    return spread


def _azure(path: Path) -> list[TraceRow]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(reader.fieldnames or ())
        if missing:
            raise BadInput(
                f"{path}: expected columns TIMESTAMP, ContextTokens and GeneratedTokens; "
                f"there is no {', '.join(sorted(missing))}",
                param="trace",
            )
        try:
            return [_azure_row(row, f"{path}:{reader.line_num}") for row in reader]
        except csv.Error as error:
            raise BadInput(f"{path}:{reader.line_num} is not CSV: {error}", param="trace") from error


def _azure_row(row: Mapping[str, str | None], where: str) -> TraceRow:
    return TraceRow(
        _timestamp(row["TIMESTAMP"], where),
        _count(row["ContextTokens"], "ContextTokens", where),
        _count(row["GeneratedTokens"], "GeneratedTokens", where),
    )


def _timestamp(text: str | None, where: str) -> float:
    """Return seconds. Azure writes seven digits of a second; Python reads six. The zone does not matter."""
    try:
        return datetime.fromisoformat((text or "")[:26]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise BadInput(f"{where}: TIMESTAMP {text!r} is not a date and time", param="trace") from None


def _json_lines(path: Path) -> list[TraceRow]:
    with path.open(encoding="utf-8") as file:
        rows = (_json_row(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip())
        return [row for row in rows if row is not None]


def _json_row(line: str, where: str) -> TraceRow | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not JSON: {error}", param="trace") from error
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected an object, not {row!r}", param="trace")
    if "prompt_hash" in row:
        return _ticket_row(row, where)
    if "input_length" in row or "timestamp" in row:
        return _mooncake_row(row, where)
    return _plain_row(row, where)


def _mooncake_row(row: Mapping[str, Any], where: str) -> TraceRow:
    blocks = row.get("hash_ids", ())
    if not isinstance(blocks, list | tuple) or not all(type(block) is int for block in blocks):
        raise BadInput(f"{where}: hash_ids must be a list of whole numbers", param="trace")
    return TraceRow(
        _seconds(row, "timestamp", where) / 1e3,
        _count(row.get("input_length"), "input_length", where),
        _count(row.get("output_length"), "output_length", where),
        blocks=tuple(blocks),
    )


def _ticket_row(row: Mapping[str, Any], where: str) -> TraceRow | None:
    """Read what a ticket tells, which is never what was said. None when nothing was produced."""
    if not row.get("output_tokens"):
        return None
    return _plain_row({**row, "at": row.get("arrived"), "deadline": None}, where)


def _plain_row(row: Mapping[str, Any], where: str) -> TraceRow:
    allowed, priority = row.get("max_tokens"), row.get("priority", 0)
    if type(priority) is not int or abs(priority) > _MAX_TOKENS:
        raise BadInput(f"{where}: priority is {priority!r}, but must be a whole number", param="trace")
    return TraceRow(
        _seconds(row, "at", where),
        _count(row.get("prompt_tokens"), "prompt_tokens", where),
        _count(row.get("output_tokens"), "output_tokens", where),
        None if allowed is None else _count(allowed, "max_tokens", where),
        _name(row, "tenant", "default", where),
        priority,
        None if row.get("deadline") is None else _seconds(row, "deadline", where),
        _name(row, "session", "", where),
    )


def _name(row: Mapping[str, Any], name: str, default: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadInput(f"{where}: {name} is {value!r}, but must be a name", param="trace")
    return str(value)


def _seconds(row: Mapping[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise BadInput(
            f"{where}: {name} is {value!r}, but must be a number, 0 or more; lines have timestamp (ms), "
            "input_length, output_length, or at (s), prompt_tokens, output_tokens",
            param="trace",
        )
    return float(value)


def _count(value: Any, name: str, where: str) -> int:
    """Read a number of tokens; Azure has them as text. Some traces have zeros, which `changed` makes 1."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if (
        isinstance(value, bool)
        or (isinstance(value, float) and number != value)
        or not 0 <= number <= _MAX_TOKENS
    ):
        raise BadInput(
            f"{where}: {name} is {value!r}, but must be a whole number, not negative", param="trace"
        )
    return number
