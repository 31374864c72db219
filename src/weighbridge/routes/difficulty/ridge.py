"""Ridge regression that chooses its penalty on rows it has not seen, nor any that nearly equal them."""

from __future__ import annotations

from typing import Protocol

import numpy as np

PENALTIES = 10.0 ** np.arange(-1.5, 2.6, 0.25)
#: Rows from which leave-one-out gives way to a hold-out fifth, which costs less, and what is tried there: rows that say
#: the same over and over want a penalty that grows with their number.
MANY = 4000
PENALTIES_OF_MANY = 10.0 ** np.arange(-1.0, 4.1, 0.5)
FOLDS = 5
#: Rows that are made together: of a few thousand columns, tens of megabytes.
AT_ONCE = 2048
#: Rows of a square that are kept together.
BAND = 256


class Matrix(Protocol):
    """Rows that are made when they are asked for."""

    def __len__(self) -> int: ...
    def take(self, picks: np.ndarray) -> np.ndarray:
        """(len(picks), columns): the rows that are picked, by their numbers."""
        ...


class Dense:
    """Rows that are there already: (n, columns)."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, picks: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self._rows[picks]
        return taken


def ridge(
    matrix: Matrix, targets: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, bias and predictions for unseen rows; each output has the penalty that predicts it best. Beyond MANY
    rows, takes memory by columns: six squares of them.

    `groups` (n,): numbers from 0 of rows that nearly equal each other. Beyond MANY rows they are unseen together: who
    has seen all but one of them would not find out that it learns by heart.
    """
    mean = targets.mean(axis=0)
    everyone = np.arange(len(matrix))
    if len(matrix) > MANY:
        centre = sum(matrix.take(picks).sum(axis=0, dtype=np.float64) for picks in _blocks(everyone)) / len(
            matrix
        )
        weights, unseen = _by_hold_out(
            _Normal(matrix, centre, targets - mean), _folds(len(matrix), groups, rng)
        )
    else:
        rows = matrix.take(everyone)
        centre = rows.mean(axis=0)
        weights, unseen = _by_leave_one_out(rows - centre, targets - mean)
    return weights, mean - centre @ weights, unseen + mean


def _by_leave_one_out(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dual, unseen = leave_one_out(rows @ rows.T, wanted)
    return rows.T @ dual, unseen


def leave_one_out(kernel: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dual weights and predictions of unseen rows, (n, outputs) each, for a kernel (n, n) and targets about zero.

    One eigendecomposition gives every penalty's exact leave-one-out residuals; each output has the best for it.
    """
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 0.0)
    rotated, squares = vectors.T @ wanted, vectors**2
    best = np.full(wanted.shape[1], np.inf)
    dual, unseen = np.zeros_like(wanted), np.zeros_like(wanted)
    for penalty in PENALTIES:
        inverse = 1.0 / (values + penalty)
        solution = vectors @ (inverse[:, None] * rotated)
        residual = solution / (squares @ inverse)[:, None]
        for output, error in enumerate((residual**2).mean(axis=0)):
            if error < best[output]:
                best[output] = error
                dual[:, output] = solution[:, output]
                unseen[:, output] = wanted[:, output] - residual[:, output]
    return dual, unseen


class _Normal:
    """The normal equations of centred rows, added up a block at a time."""

    def __init__(self, matrix: Matrix, centre: np.ndarray, wanted: np.ndarray) -> None:
        self._matrix = matrix
        self._centre = centre
        self.wanted = wanted  # (n, outputs)

    def nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram matrix and sides of no rows."""
        width = len(self._centre)
        return np.zeros((width, width)), np.zeros((width, self.wanted.shape[1]))

    def sums(self, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gram matrix and sides of some rows. A block's product is in single precision, which takes half the time;
        what it rounds is far below the least penalty."""
        gram, side = self.nothing()
        for some in _blocks(picks):
            rows = self._rows(some)
            side += rows.T @ self.wanted[some]
            single = rows.astype(np.float32)
            gram += single.T @ single
        return gram, side

    def predicted(self, picks: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(len(picks), outputs)."""
        return np.concatenate([self._rows(some) @ weights for some in _blocks(picks)])

    def _rows(self, picks: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._matrix.take(picks) - self._centre
        return rows


def _folds(count: int, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """(count,): the fold of each row. A group is in one of them, unless it is half a fold by itself."""
    fold: np.ndarray = rng.permutation(count) % FOLDS
    if groups is not None:
        sizes = np.bincount(groups)
        of_group = rng.permutation(len(sizes)) % FOLDS
        together = sizes[groups] * 2 * FOLDS <= count
        fold = np.where(together, of_group[groups], fold)
    return fold


class _Halves:
    """A symmetric matrix without the half that says the same, in single precision: a quarter of the room."""

    def __init__(self, square: np.ndarray) -> None:
        self._size = len(square)
        self._bands = [square[at : at + BAND, at:].astype(np.float32) for at in range(0, len(square), BAND)]

    def taken_from(self, square: np.ndarray) -> np.ndarray:
        """(columns, columns): `square` without it."""
        result = square.copy()
        for number, band in enumerate(self._bands):
            at, end = number * BAND, number * BAND + len(band)
            result[at:end, at:] -= band
            result[end:, at:end] -= band[:, len(band) :].T
        return result


def _by_hold_out(normal: _Normal, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Primal ridge; the penalty is chosen on the first fold held out, `unseen` is predicted over all of them."""
    whole, side = normal.nothing()
    parts = []
    for k in range(FOLDS):
        gram, part = normal.sums(np.flatnonzero(fold == k))
        whole += gram
        side += part
        parts.append((_Halves(gram), part))
        del gram
    unseen = np.zeros_like(normal.wanted)
    chosen = np.empty(0)
    for k, (halves, part) in enumerate(parts):
        picks = np.flatnonzero(fold == k)
        others = halves.taken_from(whole)
        if not len(chosen):
            chosen = _chosen(normal, picks, others, side - part)
        unseen[picks] = normal.predicted(picks, _weights(others, side - part, chosen))
        del others
    return _weights(whole, side, chosen), unseen


def _chosen(normal: _Normal, held: np.ndarray, gram: np.ndarray, side: np.ndarray) -> np.ndarray:
    """For each output, the penalty with which rows `held` out are predicted best."""
    penalties, outputs = PENALTIES_OF_MANY, side.shape[1]
    tried = np.hstack([_solve(gram, side, penalty) for penalty in penalties])
    errors = (normal.predicted(held, tried) - np.tile(normal.wanted[held], len(penalties))) ** 2
    chosen: np.ndarray = penalties[errors.mean(axis=0).reshape(-1, outputs).argmin(axis=0)]
    return chosen


def _weights(gram: np.ndarray, side: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(columns, outputs), each output with its own penalty."""
    weights = np.zeros_like(side)
    for penalty in np.unique(chosen):
        outputs = np.flatnonzero(chosen == penalty)
        weights[:, outputs] = _solve(gram, side[:, outputs], penalty)
    return weights


def _solve(gram: np.ndarray, side: np.ndarray, penalty: float) -> np.ndarray:
    """`gram` is as it was afterwards; a copy of it would be the largest thing in memory."""
    diagonal = np.einsum("ii->i", gram)  # a view
    before = diagonal.copy()
    diagonal += penalty
    try:
        result: np.ndarray = np.linalg.solve(gram, side)
    finally:
        diagonal[:] = before
    return result


def _blocks(picks: np.ndarray) -> list[np.ndarray]:
    return [picks[start : start + AT_ONCE] for start in range(0, len(picks), AT_ONCE)]
