"""How good a ranking of requests is: APGR and CPT of RouteLLM (Ong et al. 2024, arXiv 2406.18665), with intervals.

Requests are sent to the cloud from the highest score down; a(x) is the quality when the share x has been sent,
read at the eleven deciles and drawn straight between them. Within equal scores the order is random, so the
expected line is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = np.linspace(0.0, 1.0, 11)


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality at each share. `weak` and `strong`: nothing and everything sent."""

    quality: np.ndarray

    @property
    def weak(self) -> float:
        return float(self.quality[0])

    @property
    def strong(self) -> float:
        return float(self.quality[-1])

    @property
    def auc(self) -> float:
        """Mean quality over all shares, by the trapezoid rule."""
        return float(np.trapezoid(self.quality, SHARES))

    @property
    def apgr(self) -> float | None:
        """Average performance gap recovered: 0.5 is chance. None where the cloud is not better."""
        gap = self.strong - self.weak
        return (self.auc - self.weak) / gap if gap > 1e-12 else None

    def cpt(self, recovered: float) -> float | None:
        """Least share that recovers this part of the gap. None where the cloud is not better."""
        gap = self.strong - self.weak
        if gap <= 1e-12:
            return None
        target = self.weak + recovered * gap
        for left in range(10):
            low, high = float(self.quality[left]), float(self.quality[left + 1])
            if high >= target:
                step = (target - low) / (high - low) if high > low else 0.0
                return float(SHARES[left] + max(step, 0.0) * 0.1)
        return 1.0


def curve(score: np.ndarray, edge: np.ndarray, cloud: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """`weight`: how often each request counts (a bootstrap resample); None: once."""
    order = np.argsort(-score, kind="stable")
    return _curve(score[order], edge[order], cloud[order], None if weight is None else weight[order])


def _curve(score: np.ndarray, edge: np.ndarray, cloud: np.ndarray, weight: np.ndarray | None) -> Curve:
    """Of requests sorted by falling score."""
    count = np.ones(len(score)) if weight is None else weight
    total = count.sum()
    sent = np.concatenate([[0.0], np.cumsum(count)]) / total
    gained = np.concatenate([[0.0], np.cumsum(count * (cloud - edge))]) / total
    ends = np.concatenate([[0], np.flatnonzero(np.diff(score)) + 1, [len(score)]])
    weak = float((count * edge).sum() / total)
    return Curve(weak + np.interp(SHARES, sent[ends], gained[ends]))


@dataclass(frozen=True, slots=True)
class RankingReport:
    """What `route eval` prints. Qualities and shares in [0, 1]."""

    n: int
    weak: float
    strong: float
    auc: float
    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    random_apgr: float | None
    length_apgr: float | None
    oracle_apgr: float | None
    interval: dict[str, tuple[float, float] | None]


def report(
    score: np.ndarray,
    edge: np.ndarray,
    cloud: np.ndarray,
    length: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> RankingReport:
    """A ranking beside chance, prompt length and an oracle, with 95 % bootstrap intervals."""
    ours = curve(score, edge, cloud)
    chance = [curve(rng.random(len(score)), edge, cloud).apgr for _ in range(20)]
    known = [one for one in chance if one is not None]
    return RankingReport(
        n=len(score),
        weak=ours.weak,
        strong=ours.strong,
        auc=ours.auc,
        apgr=ours.apgr,
        cpt50=ours.cpt(0.5),
        cpt80=ours.cpt(0.8),
        random_apgr=float(np.mean(known)) if known else None,
        length_apgr=curve(length, edge, cloud).apgr,
        oracle_apgr=curve(cloud - edge, edge, cloud).apgr,
        interval=intervals(score, edge, cloud, rng, resamples),
    )


def intervals(
    score: np.ndarray, edge: np.ndarray, cloud: np.ndarray, rng: np.random.Generator, resamples: int
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile bootstrap over requests."""
    order = np.argsort(-score, kind="stable")
    score, edge, cloud = score[order], edge[order], cloud[order]
    drawn: dict[str, list[float | None]] = {"auc": [], "apgr": [], "cpt50": [], "cpt80": []}
    for _ in range(resamples):
        picks = np.bincount(rng.integers(0, len(score), len(score)), minlength=len(score))
        one = _curve(score, edge, cloud, picks.astype(np.float64))
        for name, value in zip(drawn, (one.auc, one.apgr, one.cpt(0.5), one.cpt(0.8)), strict=True):
            drawn[name].append(value)
    result: dict[str, tuple[float, float] | None] = {}
    for name, values in drawn.items():
        known = [value for value in values if value is not None]
        enough = len(known) > 0.9 * resamples and len(known) > 0
        result[name] = tuple(float(x) for x in np.percentile(known, (2.5, 97.5))) if enough else None  # type: ignore[assignment]
    return result
