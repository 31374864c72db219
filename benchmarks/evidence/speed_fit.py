"""Efficiencies fitted to measured speeds, and how well they predict models and GPUs that were left out.

The fit minimises the mean absolute relative error of TPOT by iteratively reweighted Gauss-Newton steps on the
logarithms of the efficiencies, held by a prior near where they began; errors beyond 100 % count as such, and groups of
one (model, GPU) count by the root of their rows. What is predicted is `roofline.coefficients` itself, on arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
from benchmarks.evidence.speed_cases import SpeedCase

from weighbridge.cost.roofline import (
    BY_ARCHITECTURE,
    BY_ENGINE,
    DATACENTER,
    Correction,
    Efficiency,
    Peak,
    coefficients,
)

Floats = npt.NDArray[np.float64]

_FREE = tuple(f.name for f in fields(Efficiency) if f.name not in ("reading", "overhead", "prompts"))
#: Which factor of which architecture or engine is free; all others stay at 1.
_CORRECTED = (
    ("blackwell", "reading"),
    ("blackwell", "overhead"),
    ("sglang", "overhead"),
    ("sglang", "prompts"),
    ("trtllm", "overhead"),
)
_GUESS = Efficiency(
    bandwidth=0.8,
    expert_bandwidth=0.8,
    cache_bandwidth=0.7,
    arithmetic=0.6,
    expert_arithmetic=0.3,
    attention_arithmetic=0.4,
    gain=0.8,
    expert_gain=0.8,
    link=0.5,
    step_seconds=1e-3,
    layer_seconds=25e-6,
    expert_layer_seconds=25e-6,
    indexer_seconds=25e-6,
    quantizing_seconds=10e-6,
    all_reduce_seconds=10e-6,
    all_reduce_growth=1.2,
    exchange_seconds=25e-6,
    sequence_seconds=10e-6,
)
_PRIOR = 0.002  # of the mean error, per squared unit of a logarithm
_SOFT = 0.03  # errors below this are as good as none


@dataclass(frozen=True, slots=True)
class Fitted:
    base: Efficiency
    corrections: dict[tuple[str, str], float]  # (architecture or engine, factor) to its value

    @staticmethod
    def guess() -> Fitted:
        """Where fits begin: round numbers, nothing corrected, so that no row speaks through the prior."""
        return Fitted(_GUESS, dict.fromkeys(_CORRECTED, 1.0))

    @staticmethod
    def shipped() -> Fitted:
        known: dict[str, Correction] = {**BY_ARCHITECTURE, **BY_ENGINE}
        return Fitted(DATACENTER, {(name, kind): getattr(known[name], kind) for name, kind in _CORRECTED})

    def point(self) -> Floats:
        values = [getattr(self.base, name) for name in _FREE]
        point: Floats = np.log(np.array([*values, *(self.corrections[key] for key in _CORRECTED)]))
        return point

    def moved(self, point: Floats) -> Fitted:
        values = [float(x) for x in np.exp(point)]
        base = replace(self.base, **dict(zip(_FREE, values, strict=False)))
        return Fitted(base, dict(zip(_CORRECTED, values[len(_FREE) :], strict=True)))


class Table:
    """Cases as arrays, ready to be predicted many times."""

    def __init__(self, cases: Sequence[SpeedCase]) -> None:
        def column(read: Callable[[SpeedCase], object]) -> Floats:
            return np.array([read(case) for case in cases], dtype=np.float64)

        self.cases = cases
        self.tpot = column(lambda c: c.tpot)
        self._batch, self._experts = column(lambda c: c.batch), column(lambda c: c.experts)
        self._prompt, self._output = column(lambda c: c.prompt), column(lambda c: c.output)
        columns = {f.name: [getattr(c.peak, f.name) for c in cases] for f in fields(Peak)}
        self._peak = Peak(**{k: np.array(v, dtype=np.float64) for k, v in columns.items()})  # type: ignore[arg-type]
        self._marks = {
            name: column(lambda c, name=name: name in (c.architecture, c.engine))  # type: ignore[misc]
            for name, _ in _CORRECTED
        }
        sizes = Counter(case.group for case in cases)
        weights = column(lambda c: sizes[c.group] ** -0.5)
        self.weights: Floats = weights / weights.mean()

    def predict(self, fitted: Fitted) -> Floats:
        """TPOT of every case: `speed.time_per_token` of its step costs."""
        factors: dict[str, Floats] = {}
        for (name, kind), value in fitted.corrections.items():
            factors[kind] = factors.get(kind, np.ones(len(self.tpot))) * value ** self._marks[name]
        c = coefficients(replace(fitted.base, **factors), self._peak)  # type: ignore[arg-type]
        batch, prompt, output = self._batch, self._prompt, self._output
        step = (
            c.overhead
            + np.maximum(c.memory, c.token * batch)
            + c.decode_pair * batch * (prompt + output / 2)
            + c.sequence * batch
            + c.expert * self._experts
        )
        beside = c.prompt_token * prompt + c.prompt_pair * prompt * prompt / 2
        result: Floats = step + (batch - 1) * beside / output
        return result


def errors(predicted: Floats, measured: Floats) -> Floats:
    result: Floats = predicted / measured - 1.0
    return result


def fit(cases: Sequence[SpeedCase], start: Fitted | None = None, rounds: int = 40) -> Fitted:
    """The efficiencies near `start` (a guess) that meet `cases` best. Deterministic."""
    begun = start or Fitted.guess()
    table, origin = Table(cases), begun.point()
    prior = _PRIOR * len(cases)

    def residuals(point: Floats) -> Floats:
        return errors(table.predict(begun.moved(point)), table.tpot)

    def loss(point: Floats) -> float:
        bounded = np.minimum(np.abs(residuals(point)), 1.0)
        return float((table.weights * bounded).sum() + prior * ((point - origin) ** 2).sum())

    point, best, damping = origin, loss(origin), 1.0
    for _ in range(rounds):
        found = _step(residuals, loss, point, origin, prior, table.weights, best, damping)
        if found is None:
            break
        point, value, damping = found
        gained, best = best - value, value
        if gained < 1e-4 * best:
            break
    return begun.moved(point)


def _step(
    residuals: Callable[[Floats], Floats],
    loss: Callable[[Floats], float],
    point: Floats,
    origin: Floats,
    prior: float,
    weights: Floats,
    best: float,
    damping: float,
) -> tuple[Floats, float, float] | None:
    """One reweighted, damped Gauss-Newton step that lowers the loss; None when none does."""
    error = residuals(point)
    slopes = np.empty((len(error), len(point)))
    for index in range(len(point)):
        beside = point.copy()
        beside[index] += 1e-4
        slopes[:, index] = (residuals(beside) - error) / 1e-4
    weight = weights / np.maximum(np.abs(error), _SOFT)
    weight[np.abs(error) > 1.0] = 0.0
    matrix = slopes.T @ (slopes * weight[:, None]) + 2 * prior * np.eye(len(point))
    slope = -(slopes.T @ (weight * error) + 2 * prior * (point - origin))
    for _ in range(8):
        moved = point + np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), slope)
        value = loss(moved)
        if value < best:
            return moved, value, damping * 0.3
        damping *= 4.0
    return None


def held_out(
    cases: Sequence[SpeedCase], key: Callable[[SpeedCase], object], start: Fitted, rounds: int = 15
) -> Floats:
    """Predicted TPOT of every case by efficiencies that were fitted to all cases of another `key`."""
    keys = [key(case) for case in cases]
    predicted = np.empty(len(cases))
    for one in _distinct(keys):
        rest = [case for case, other in zip(cases, keys, strict=True) if other != one]
        inside = [index for index, other in enumerate(keys) if other == one]
        fitted = fit(rest, start, rounds)
        predicted[inside] = Table([cases[index] for index in inside]).predict(fitted)
    return predicted


def _distinct(keys: Iterable[object]) -> list[object]:
    return list(dict.fromkeys(keys))
