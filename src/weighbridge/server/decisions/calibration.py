"""From what a model says to what came true: a rising line through a tenant's own labels, and what it is worth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weighbridge.routes.difficulty.isotonic import Isotonic, calibration_error, fit
from weighbridge.server.decisions.labels import LabelShares

#: Parts into which examples are cut: each is predicted by a line through the others.
FOLDS = 5
#: Examples of one line, and points that are kept of it.
FEWEST, MOST, MOST_KNOTS = 20, 100_000, 512


@dataclass(frozen=True, slots=True)
class Worth:
    """How far probabilities are from what came true. `ece`: expected calibration error, over ten bins of equal count;
    `brier`: mean squared error. Both in [0, 1], and 0 is best."""

    ece: float
    brier: float

    def as_dict(self) -> dict[str, float]:
        return {"ece": round(self.ece, 6), "brier": round(self.brier, 6)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line, how many examples it is made of, and what they say of it: `after` on those it had not seen."""

    line: Isotonic
    examples: int
    before: Worth
    after: Worth

    def applied(self, found: LabelShares, lone: bool) -> LabelShares:
        """The shares as they should be. `lone`: there are two labels, and the first alone is what was calibrated."""
        if lone:
            yes = min(max(self.line(found.shares[0]), 0.0), 1.0)
            return replace(found, shares=(yes, 1.0 - yes))
        raised = [max(self.line(one), 0.0) for one in found.shares]
        total = sum(raised)
        return found if total <= 0.0 else replace(found, shares=tuple(one / total for one in raised))

    def as_dict(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


def worth(probabilities: np.ndarray, outcomes: np.ndarray) -> Worth:
    brier = float(np.mean((probabilities - outcomes) ** 2))
    return Worth(calibration_error(probabilities, outcomes), brier)


def calibrate(probabilities: Sequence[float], outcomes: Sequence[bool]) -> Calibration:
    """A line through examples, and its worth on those that each of five lines has not seen. Raises ValueError for
    fewer than `FEWEST` examples, or where all came out alike."""
    said, came = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if len(said) < FEWEST:
        raise ValueError(f"give at least {FEWEST} examples; there are {len(said)}")
    if came.min() == came.max():
        raise ValueError("all examples came out alike; give some of both")
    parts = np.arange(len(said)) % FOLDS
    parts[np.argsort(said, kind="stable")] = parts.copy()  # each part has some of everything
    held_out = np.empty_like(said)
    for part in range(FOLDS):
        own = parts == part
        line = fit(said[~own], came[~own])
        held_out[own] = [line(one) for one in said[own]]
    return Calibration(_thinned(fit(said, came)), len(said), worth(said, came), worth(held_out, came))


def _thinned(line: Isotonic) -> Isotonic:
    """The line with as many points as are kept, the outer ones among them."""
    if len(line.knots) <= MOST_KNOTS:
        return line
    kept = np.unique(np.linspace(0, len(line.knots) - 1, MOST_KNOTS).round().astype(int))
    return Isotonic(tuple(line.knots[at] for at in kept), tuple(line.levels[at] for at in kept))
