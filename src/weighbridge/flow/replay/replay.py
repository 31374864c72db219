"""Replay of workloads: the real runtime and the real gate, under a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from weighbridge.errors import WeighbridgeError
from weighbridge.flow.bets.gate import Belief
from weighbridge.flow.bets.guess import guess
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.bets.predict import GuessedCall, Prediction
from weighbridge.flow.budget import Budget
from weighbridge.flow.flow import VALUE_PER_SECOND, Flow, Mode
from weighbridge.flow.identity import freeze
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.replay.workload import RecordedCall, RecordedTask, drawn
from weighbridge.flow.report.record import Record
from weighbridge.flow.runtime import charge
from weighbridge.flow.step import Step, step

ReplayMode = Literal["sequential", "parallel", "speculate", "oracle", "liar"]

#: Output of a call whose arguments were wrong guesses; no recorded output equals it.
ASTRAY = "(led astray by a wrong guess)"
LIE = "(a lie)"


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How to replay. `limit`: how many calls run at once, over all effects (None: no limit)."""

    mode: ReplayMode = "speculate"
    value_per_second: float = VALUE_PER_SECOND
    budget: Budget = field(default_factory=Budget)
    limit: int | None = None
    real_time: bool = False
    seed: int = 0


@dataclass(slots=True)
class Replayed:
    """What a replay measured, per task in the order of the workload."""

    settings: ReplaySettings
    makespans: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    written: list[list[str]] = field(default_factory=list)  # ids of the writes of each task, as they happened
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def report(self, sequential: Replayed) -> dict[str, Any]:
        """Return the figures of the command line, beside a sequential replay of the same workload."""
        usd = sum(record.usd for record in self.records)
        wasted_usd = sum(record.wasted_usd for record in self.records)
        busy = sum(record.busy_seconds for record in self.records)
        wasted_seconds = sum(record.wasted_seconds for record in self.records)
        share = wasted_usd / usd if usd > 0.0 else wasted_seconds / busy if busy > 0.0 else 0.0
        outcomes = [record.outcomes() for record in self.records]
        mean = sum(self.makespans) / len(self.makespans)
        mean_sequential = sum(sequential.makespans) / len(sequential.makespans)
        return {
            "mode": self.settings.mode,
            "tasks": len(self.makespans),
            "makespan_s": {
                "mean": round(mean, 6),
                "p50": round(_quantile(self.makespans, 0.5), 6),
                "p95": round(_quantile(self.makespans, 0.95), 6),
            },
            "speedup_over_sequential": round(mean_sequential / mean, 4) if mean > 0.0 else 1.0,
            "wasted_share": round(share, 6),
            "usd": round(usd, 8),
            "bets": {name: sum(counts[name] for counts in outcomes) for name in ("won", "lost", "declined")},
            "writes": sum(len(writes) for writes in self.written),
        }


def replay(tasks: Sequence[RecordedTask], settings: ReplaySettings) -> Replayed:
    """Run every task once, in order, through a single flow that learns as it goes.

    Raises WeighbridgeError if any output or write differs from what the workload says: that would be a
    defect of the runtime.
    """
    work = _Replay(settings).run(tasks)
    replayed = asyncio.run(work) if settings.real_time else run_virtual(work)
    _check(tasks, replayed)
    return replayed


class _Replay:
    def __init__(self, settings: ReplaySettings) -> None:
        self._settings = settings
        self._written: list[str] = []
        self._outputs: dict[str, Any] = {}
        resource = None if settings.limit is None else "everything"
        self._steps: dict[str, Step[Any, Any]] = {}
        self._resource = resource
        mode: Mode = "speculate"
        if settings.mode in ("sequential", "parallel"):
            mode = cast(Mode, settings.mode)
        self._flow: Flow[[RecordedTask], dict[str, Any]] = Flow(
            self._body,
            mode=mode,
            budget=settings.budget,
            value_per_second=settings.value_per_second,
            limits={"everything": settings.limit} if settings.limit is not None else None,
            name="replay",
        )
        if settings.mode == "oracle":
            self._flow.learner = _Certain()

    async def run(self, tasks: Sequence[RecordedTask]) -> Replayed:
        result = Replayed(self._settings)
        for task in tasks:
            self._written = []
            result.outputs.append(await self._flow(task))
            record = self._flow.last
            assert record is not None
            result.makespans.append(record.seconds)
            result.records.append(record)
            result.written.append(self._written)
        return result

    async def _body(self, task: RecordedTask) -> dict[str, Any]:
        made: dict[str, Awaitable[Any]] = {}
        calls = {call.id: call for call in task.steps}
        for call in task.steps:
            arguments = [self._argument(task, calls[dep], made[dep]) for dep in call.after]
            made[call.id] = self._step(call)(
                task.id, call, [calls[dep].output for dep in call.after], *arguments
            )
        return {name: await promise for name, promise in made.items()}

    def _argument(self, task: RecordedTask, call: RecordedCall, promise: Awaitable[Any]) -> Awaitable[Any]:
        if not call.guessed:
            return promise
        recorded = _RecordedPredictor(self._predictions(task, call), call.prediction_seconds)
        return guess(promise, by=recorded, site=call.site, width=max(len(call.predictions), 1))

    def _predictions(self, task: RecordedTask, call: RecordedCall) -> Sequence[Any]:
        if self._settings.mode == "oracle":
            return [call.output]
        if self._settings.mode == "liar":
            return [f"{LIE} {n}" for n in range(max(len(call.predictions), 1))]
        if call.predictions:
            return call.predictions
        if call.prediction is not None:
            return [call.prediction]
        right = drawn(self._settings.seed, task.id, call.id) < (call.predictable or 0.0)
        return [call.output if right else LIE]

    def _step(self, call: RecordedCall) -> Step[Any, Any]:
        """One step per name and effect, so that durations are learned by name."""
        key = f"{call.site}:{call.effect}"
        if key not in self._steps:
            undo = _nothing if call.effect == "undo" else None
            decorate = step(effect=call.effect, resource=self._resource, name=call.site, undo=undo)
            self._steps[key] = decorate(self._act)
        return self._steps[key]

    async def _act(self, task: str, call: RecordedCall, expected: list[Any], *arguments: Any) -> Any:
        charge(call.usd)
        await asyncio.sleep(call.seconds)
        if call.effect in ("write", "undo"):
            self._written.append(call.id)
        right = freeze(list(arguments)) == freeze(expected)
        return call.output if right else ASTRAY


class _RecordedPredictor:
    """Repeats the predictions of the workload, after the time that predicting took."""

    name = "workload"

    def __init__(self, values: Sequence[Any], seconds: float) -> None:
        self._predictions = [Prediction(value, (self.name, rank)) for rank, value in enumerate(values)]
        self._seconds = seconds

    def predict(self, call: GuessedCall) -> Sequence[Prediction] | Awaitable[Sequence[Prediction]]:
        return self._later() if self._seconds > 0.0 else self._predictions

    async def _later(self) -> Sequence[Prediction]:
        await asyncio.sleep(self._seconds)
        return self._predictions

    def learn(self, call: GuessedCall, outcome: Any) -> None:
        """Nothing to learn: the predictions are recorded."""


class _Certain(Learner):
    """Believes every prediction: the bound that a perfect predictor reaches."""

    def belief(self, site: str, kind: Any) -> Belief:
        return Belief(prior_won=1e12, prior_lost=1e-3)


async def _nothing(_: Any) -> None:
    """Taking back a recorded call takes nothing."""


def _check(tasks: Sequence[RecordedTask], replayed: Replayed) -> None:
    for task, outputs, written in zip(tasks, replayed.outputs, replayed.written, strict=True):
        for call in task.steps:
            if freeze(outputs[call.id]) != freeze(call.output):
                raise WeighbridgeError(
                    f"task {task.id}, step {call.id}: the replay gave {outputs[call.id]!r}"
                )
        expected = [call.id for call in task.steps if call.effect in ("write", "undo")]
        if written != expected:
            raise WeighbridgeError(f"task {task.id}: writes happened as {written} instead of {expected}")


def _quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, by linear interpolation between order statistics."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
