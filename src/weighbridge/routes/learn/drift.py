"""Whether traffic is still what the router was trained on: scores, features, and how often the edge is right.

A score is the share of training prompts that have less to gain from the cloud, so over the training labels it is
even between 0 and 1; whatever bends away from that has drifted. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from weighbridge.routes.difficulty.features import FEATURES
from weighbridge.routes.difficulty.isotonic import calibration_error
from weighbridge.routes.difficulty.trained import TrainedRouter

#: Requests, or shadow evaluations, below which nothing is said.
LEAST = 100
#: Population stability index from which a distribution has shifted somewhat, and much (the usual rule of thumb).
SOME, MUCH = 0.1, 0.25
#: A feature's mean so many training deviations away counts as moved; quality so many standard errors away as well.
MOVED, SURE = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class Drift:
    """`stability`: PSI of the scores over ten parts. `features`: name and shift of the mean, in deviations of the
    training labels, largest first. `edge`, `edge_expected`: mean quality of local answers as judged, and as the
    labels had it at those scores; `surprise`: their difference in standard errors. `error`: expected calibration
    error of the confidences. None: too few rows to say. `findings`: all that is worth a look, in words."""

    requests: int
    judged: int
    stability: float | None
    features: tuple[tuple[str, float], ...]
    edge: float | None
    edge_expected: float | None
    surprise: float | None
    error: float | None
    findings: tuple[str, ...]


def drift(
    router: TrainedRouter, tickets: Iterable[Mapping[str, Any]], shadows: Sequence[Mapping[str, Any]]
) -> Drift:
    """`tickets`: those with a `score`; `shadows`: rows of the shadow file, with `features` and `edge_quality`."""
    scores = [one["score"] for one in tickets if one.get("score") is not None]
    stability = population_stability(scores) if len(scores) >= LEAST else None
    rows = [one for one in shadows if one.get("edge_quality") is not None]
    edge, expected, surprise = _correctness(router, rows)
    error = _calibration(rows)
    features = _features(router, rows)
    return Drift(
        requests=len(scores),
        judged=len(rows),
        stability=stability,
        features=features,
        edge=edge,
        edge_expected=expected,
        surprise=surprise,
        error=error,
        findings=_findings(stability, features, edge, expected, surprise, error),
    )


def population_stability(scores: Sequence[float]) -> float:
    """PSI of scores against an even spread over [0, 1]: sum of (a - e) ln(a / e) over ten parts, half a request
    added to each so that an empty part stays finite."""
    counts = np.histogram(scores, bins=10, range=(0.0, 1.0))[0] + 0.5
    actual = counts / counts.sum()
    return float(np.sum((actual - 0.1) * np.log(actual / 0.1)))


def _features(router: TrainedRouter, rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, float], ...]:
    kept = [one["features"] for one in rows if len(one.get("features") or ()) == len(FEATURES)]
    if len(kept) < LEAST:
        return ()
    space = router.prompt.space
    shifts = (np.mean(kept, axis=0) - space.mean[: len(FEATURES)]) / space.deviation[: len(FEATURES)]
    order = np.argsort(-np.abs(shifts))
    return tuple((FEATURES[place], round(float(shifts[place]), 4)) for place in order)


def _correctness(
    router: TrainedRouter, rows: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None, float | None]:
    """Judged quality of the edge, that of the labels at the same scores, and how unlikely the difference is."""
    scored = [one for one in rows if one.get("score") is not None]
    if len(scored) < LEAST:
        return None, None, None
    parts = np.minimum((np.array([one["score"] for one in scored]) * 10).astype(int), 9)
    quality = np.array([one["edge_quality"] for one in scored], dtype=np.float64)
    levels = np.array(router.baseline.edge)
    expected = levels[parts]
    here = float(np.sum(np.maximum(expected * (1.0 - expected), 1e-3))) / len(scored) ** 2
    shares = np.bincount(parts, minlength=10) / len(scored)
    labels = max(router.baseline.labels / 10, 1.0)
    there = float(np.sum(shares**2 * np.maximum(levels * (1.0 - levels), 1e-3) / labels))
    surprise = float(quality.mean() - expected.mean()) / sqrt(here + there)
    return float(quality.mean()), float(expected.mean()), surprise


def _calibration(rows: Sequence[Mapping[str, Any]]) -> float | None:
    known = [(one["confidence"], one["edge_quality"]) for one in rows if one.get("confidence") is not None]
    if len(known) < LEAST:
        return None
    confidence, quality = np.array(known, dtype=np.float64).T
    return calibration_error(confidence, quality)


def _findings(
    stability: float | None,
    features: Sequence[tuple[str, float]],
    edge: float | None,
    expected: float | None,
    surprise: float | None,
    error: float | None,
) -> tuple[str, ...]:
    found = []
    if stability is not None and stability >= SOME:
        word = "much" if stability >= MUCH else "somewhat"
        found.append(f"scores have shifted {word} (stability index {stability:.2f}; even is 0)")
    moved = [f"{name} {shift:+.1f}" for name, shift in features if abs(shift) >= MOVED]
    if moved:
        found.append(
            "prompts are unlike the labels, in training deviations: "
            + ", ".join(moved[:5])
            + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
        )
    if surprise is not None and edge is not None and expected is not None and abs(surprise) >= SURE:
        word = "worse" if surprise < 0 else "better"
        found.append(
            f"local answers are {word} than the labels had them: {edge:.1%} instead of {expected:.1%}"
        )
    if error is not None and error >= 0.1:
        found.append(f"confidences are off by {error:.1%} on average")
    return tuple(found)
