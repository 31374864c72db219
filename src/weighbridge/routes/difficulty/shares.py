"""How much each vector counts beside the text: chosen by leave-one-out on the labels, and nothing in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weighbridge.routes.difficulty.embedders.vectors import VectorTable
from weighbridge.routes.difficulty.ridge import Matrix, leave_one_out
from weighbridge.routes.difficulty.rows import Part

#: Shares that are tried; the text's kernels have 0.5 to 1 each.
SHARES = (0.25, 0.5, 1.0)
#: What is won has to exceed so many standard errors of itself. Noise seldom does; and where it does, it costs little
#: but the waiting, since a small share of noise in the kernel acts like a larger penalty.
SURE = 0.5
#: Labels that the choice is made on, at most: it takes an eigendecomposition for every share that is tried.
MOST_LABELS = 1500


def parts_of(tables: Sequence[VectorTable]) -> list[Part]:
    """All parts of all sources, without shares yet."""
    parts = []
    for table in tables:
        start = 0
        for width in table.source.parts:
            parts.append(Part.of(table.source.name, start, table.rows[:, start : start + width]))
            start += width
    return parts


def chosen_shares(
    base: Matrix,
    targets: np.ndarray,
    parts: Sequence[Part],
    rng: np.random.Generator,
    groups: np.ndarray | None = None,
) -> list[Part]:
    """The parts with their shares: one after the other, the share whose predictions of unseen labels err least;
    zero unless that is better than without by more than chance. `targets` (n, 3); of each of the `groups` (n,) of
    labels that are nearly the same, one is asked."""
    picks = rng.permutation(len(base))
    if groups is not None:
        picks = picks[np.sort(np.unique(groups[picks], return_index=True)[1])]
    picks = picks[:MOST_LABELS]
    wanted = targets[picks] - targets[picks].mean(axis=0)
    kernel, chosen = _kernel(base.take(picks)), []
    errors = _errors(kernel, wanted)
    for part in parts:
        more = _kernel(part.columns(picks))
        tried = [(_errors(kernel + share * more, wanted), share) for share in SHARES]
        best, share = min(tried, key=lambda one: float(one[0].mean()))
        won = errors - best
        if won.mean() > SURE * won.std() / np.sqrt(len(won)):
            kernel, errors = kernel + share * more, best
            chosen.append(replace(part, share=share))
        else:
            chosen.append(part)
    return chosen


def _kernel(columns: np.ndarray) -> np.ndarray:
    centred = columns - columns.mean(axis=0)
    kernel: np.ndarray = centred @ centred.T
    return kernel


def _errors(kernel: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Squared error of each label's outputs, predicted without it. All of them together tell signal from noise
    better than the gain alone, most of which is chance."""
    _, unseen = leave_one_out(kernel, wanted)
    errors: np.ndarray = ((unseen - wanted) ** 2).sum(axis=1)
    return errors
