"""Scores for labels: by a router that was trained before, or by cross-validation on the labels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weighbridge.hybrid.difficulty.labels import Label
from weighbridge.hybrid.difficulty.metrics import Report, report
from weighbridge.hybrid.difficulty.model import TrainedRouter
from weighbridge.hybrid.difficulty.train import train

MODES = ("auto", "prompt", "cascade")


def reads_answers(router: TrainedRouter, labels: Sequence[Label], mode: str) -> bool:
    """`auto`: the local answers are read where the router can and the labels hold them."""
    able = router.judge is not None and all(one.edge_response is not None for one in labels)
    return able if mode == "auto" else mode == "cascade" and able


def scores(router: TrainedRouter, labels: Sequence[Label], mode: str = "auto") -> np.ndarray:
    """Higher: more to gain from the cloud."""
    if reads_answers(router, labels, mode):
        return np.array(
            [
                router.cascade_score(one.prompt, one.edge_response or "", one.signals, one.agreement)
                for one in labels
            ]
        )
    return np.array([router.score(one.prompt) for one in labels])


def cross_validated(labels: Sequence[Label], folds: int, mode: str = "auto", seed: int = 0) -> np.ndarray:
    """Each label scored by a router trained on the other folds."""
    result = np.zeros(len(labels))
    fold = np.random.default_rng(seed).permutation(len(labels)) % folds
    for k in range(folds):
        router = train([one for one, f in zip(labels, fold, strict=True) if f != k], seed)
        mine = np.flatnonzero(fold == k).tolist()
        result[mine] = scores(router, [labels[i] for i in mine], mode)
    return result


def evaluate(labels: Sequence[Label], score: np.ndarray, seed: int = 0, resamples: int = 1000) -> Report:
    """The ranking beside random, prompt length and oracle."""
    return report(
        score,
        np.array([one.edge for one in labels]),
        np.array([one.cloud for one in labels]),
        np.array([len(one.prompt) for one in labels], dtype=np.float64),
        np.random.default_rng(seed),
        resamples,
    )
