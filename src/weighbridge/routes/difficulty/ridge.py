"""Ridge regression that chooses its penalty on rows it has not seen."""

from __future__ import annotations

import numpy as np

PENALTIES = 10.0 ** np.arange(-1.5, 2.6, 0.25)
#: Rows from which leave-one-out gives way to a hold-out fifth, which costs less.
MANY = 4000


def ridge(
    columns: np.ndarray, targets: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, bias and predictions for unseen rows; each output has the penalty that predicts it best."""
    centre, mean = columns.mean(axis=0), targets.mean(axis=0)
    rows, wanted = columns - centre, targets - mean
    solve = _by_hold_out if len(rows) > MANY else _by_leave_one_out
    weights, unseen = solve(rows, wanted, rng)
    return weights, mean - centre @ weights, unseen + mean


def _by_leave_one_out(
    rows: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
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


def _by_hold_out(
    rows: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Primal ridge; the penalty is chosen on a fifth held out, `unseen` is predicted over five folds."""
    fold = rng.permutation(len(rows)) % 5
    grams = [rows[fold == k].T @ rows[fold == k] for k in range(5)]
    sides = [rows[fold == k].T @ wanted[fold == k] for k in range(5)]
    whole, side = sum(grams), sum(sides)
    held = fold == 0
    penalties = PENALTIES[::2]
    errors = np.array(
        [
            ((rows[held] @ _solve(whole - grams[0], side - sides[0], p) - wanted[held]) ** 2).mean(axis=0)
            for p in penalties
        ]
    )
    chosen = penalties[errors.argmin(axis=0)]
    weights, unseen = np.zeros((rows.shape[1], wanted.shape[1])), np.zeros_like(wanted)
    for penalty in np.unique(chosen):
        outputs = np.flatnonzero(chosen == penalty)
        weights[:, outputs] = _solve(whole, side[:, outputs], penalty)
        for k in range(5):
            part = _solve(whole - grams[k], (side - sides[k])[:, outputs], penalty)
            unseen[np.ix_(fold == k, outputs)] = rows[fold == k] @ part
    return weights, unseen


def _solve(gram: np.ndarray, side: np.ndarray, penalty: float) -> np.ndarray:
    result: np.ndarray = np.linalg.solve(gram + penalty * np.eye(len(gram)), side)
    return result
