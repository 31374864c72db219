"""A better threshold from shadow evaluations, where there is one. Pure: randomness is passed in.

Each row says how good the local answer was, the cloud's being the measure, and what each side costs. A threshold is
worth, per request, quality times what a right answer is worth, less what was paid. Below a pre-router threshold the
edge answers; below a confidence the cloud does, after the edge has been paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Judged rows below which nothing is suggested, and steps between thresholds that are tried.
LEAST = 100
STEP = 0.05
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`kind`: "score" for the pre-router's threshold, "confidence" for the cascade's. Shares and qualities in
    [0, 1]; `gain`: US dollars per request over the present threshold, with its 95 % interval. It is worth
    changing where the whole interval is above 0."""

    kind: str
    threshold: float
    present: float
    cloud_share: float
    quality: float
    gain: float
    interval: tuple[float, float]
    judged: int

    @property
    def worth_changing(self) -> bool:
        return self.interval[0] > 0.0


def suggest(
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    present: float,
    usd_per_quality: float,
    rng: np.random.Generator,
) -> Suggestion | None:
    """The best threshold for `kind`; None where fewer than LEAST rows hold it.

    The threshold is chosen on one half of the rows and its gain measured on the other, then the halves change
    places: a choice among twenty looks better on its own data than it is.
    """
    known = [one for one in rows if one.get(kind) is not None and one.get("edge_quality") is not None]
    if len(known) < LEAST:
        return None
    values = np.array([one[kind] for one in known], dtype=np.float64)
    quality = np.array([one["edge_quality"] for one in known], dtype=np.float64)
    costs = np.array(
        [(one.get("edge_usd", 0.0), one.get("cloud_usd", 0.0)) for one in known], dtype=np.float64
    )
    arms = np.append(np.arange(0.0, 1.0 + STEP / 2, STEP), present)
    worth, sent = _worth(kind, arms, values, quality, costs, usd_per_quality)
    gains = worth - worth[-1]
    fold = rng.permutation(len(known)) % 2
    held_out = np.zeros(len(known))
    for half in (0, 1):
        chosen = gains[:, fold != half].mean(axis=1).argmax()
        held_out[fold == half] = gains[chosen, fold == half]
    best = int(gains.mean(axis=1).argmax())
    draws = rng.choice(held_out, (RESAMPLES, len(known))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Suggestion(
        kind=kind,
        threshold=round(float(arms[best]), 4),
        present=present,
        cloud_share=float(sent[best].mean()),
        quality=float(np.where(sent[best], 1.0, quality).mean()),
        gain=float(held_out.mean()),
        interval=(float(low), float(high)),
        judged=len(known),
    )


def _worth(
    kind: str,
    arms: np.ndarray,
    values: np.ndarray,
    quality: np.ndarray,
    costs: np.ndarray,
    usd_per_quality: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Per threshold and row, (arms, rows): what the row is worth in US dollars, and whether the cloud answers."""
    edge, cloud = costs[:, 0], costs[:, 1]
    sent = values >= arms[:, None] if kind == "score" else values < arms[:, None]
    paid = np.where(sent, cloud + (edge if kind == "confidence" else 0.0), edge)
    return np.where(sent, 1.0, quality) * usd_per_quality - paid, sent
