"""Workloads to replay: one task a line, each a graph of calls with their recorded times, prices and outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.errors import BadInput
from weighbridge.flow.step import Effect

NonNegative = Annotated[float, Meta(ge=0.0)]


class RecordedCall(Struct, forbid_unknown_fields=True, frozen=True):
    """One call of a task. `after`: ids of earlier calls whose outputs it takes."""

    id: str
    after: tuple[str, ...] = ()
    seconds: NonNegative = 0.0
    effect: Effect = "pure"
    usd: NonNegative = 0.0
    predictable: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None  # how often a predictor is right
    output: Any = None
    prediction: Any = None  # what the predictor says; drawn from `predictable` when absent
    predictions: tuple[Any, ...] = ()  # more than one hypothesis, the likeliest first
    prediction_seconds: NonNegative = 0.0  # what predicting takes
    name: str | None = None  # calls of one name are learned about together; by default the id

    @property
    def guessed(self) -> bool:
        """Whether somebody predicts its output."""
        return self.predictable is not None or self.prediction is not None or bool(self.predictions)

    @property
    def site(self) -> str:
        return self.name or self.id


class RecordedTask(Struct, forbid_unknown_fields=True, frozen=True):
    """Calls in program order: reads and writes keep that order among themselves."""

    id: str
    steps: tuple[RecordedCall, ...]

    def check(self) -> None:
        """Raises BadInput naming the call whose id or `after` is wrong."""
        seen: set[str] = set()
        for call in self.steps:
            if call.id in seen:
                raise BadInput(f"task {self.id}: two steps have the id {call.id!r}; ids must differ")
            for dep in call.after:
                if dep not in seen:
                    raise BadInput(
                        f"task {self.id}, step {call.id}: `after` names {dep!r}, which is not an earlier step"
                    )
            seen.add(call.id)


def read_workload(path: Path) -> list[RecordedTask]:
    """Return the tasks of a JSONL file. Raises BadInput naming the line that is wrong."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"workload {path}: {error}") from error
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = msgspec.json.decode(line, type=RecordedTask)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(f"workload {path}, line {number}: {error}") from error
        task.check()
        tasks.append(task)
    if not tasks:
        raise BadInput(f"workload {path} has no tasks; give one JSON object a line")
    return tasks


def drawn(*parts: Any) -> float:
    """Return a number in [0, 1) that depends on nothing but `parts`."""
    data = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(data) / 2**64
