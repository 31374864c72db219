"""Scores for labels: by a router that was trained before, or by cross-validation on the labels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weighbridge.routes.difficulty.embedders.vectors import VectorTable, vectors_of
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.difficulty.metrics import RankingReport, report
from weighbridge.routes.difficulty.train import train
from weighbridge.routes.difficulty.trained import TrainedRouter

MODES = ("auto", "prompt", "cascade")


def reads_answers(router: TrainedRouter, labels: Sequence[Label], mode: str) -> bool:
    """`auto`: the local answers are read where the router can and the labels hold them."""
    able = router.judge is not None and all(one.edge_response is not None for one in labels)
    return able if mode == "auto" else mode == "cascade" and able


def scores(
    router: TrainedRouter, labels: Sequence[Label], mode: str = "auto", tables: Sequence[VectorTable] = ()
) -> np.ndarray:
    """Higher: more to gain from the cloud. `tables`: vectors of the labels' prompts, in the same order."""
    if reads_answers(router, labels, mode):
        return np.array(
            [
                router.cascade_score(one.prompt, one.edge_response or "", one.signals, one.agreement)
                for one in labels
            ]
        )
    return np.array([router.score(one.prompt, vectors_of(tables, row)) for row, one in enumerate(labels)])


def cross_validated(
    labels: Sequence[Label],
    folds: int,
    mode: str = "auto",
    seed: int = 0,
    tables: Sequence[VectorTable] = (),
) -> np.ndarray:
    """Each label scored by a router trained on the other folds."""
    result = np.zeros(len(labels))
    fold = np.random.default_rng(seed).permutation(len(labels)) % folds
    for k in range(folds):
        others, mine = np.flatnonzero(fold != k).tolist(), np.flatnonzero(fold == k).tolist()
        router = train([labels[i] for i in others], seed, [one.take(others) for one in tables])
        result[mine] = scores(router, [labels[i] for i in mine], mode, [one.take(mine) for one in tables])
    return result


def evaluate(
    labels: Sequence[Label], score: np.ndarray, seed: int = 0, resamples: int = 1000
) -> RankingReport:
    """The ranking beside random, prompt length and oracle."""
    return report(
        score,
        np.array([one.edge for one in labels]),
        np.array([one.cloud for one in labels]),
        np.array([len(one.prompt) for one in labels], dtype=np.float64),
        np.random.default_rng(seed),
        resamples,
    )
