"""Labels to a router. Every choice (penalty, widths, how much the words count) is made on the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.hybrid.difficulty import isotonic
from weighbridge.hybrid.difficulty.features import COLUMNS, hashed_row, prompt_features
from weighbridge.hybrid.difficulty.labels import Label
from weighbridge.hybrid.difficulty.model import (
    OUTPUTS,
    Baseline,
    Model,
    Recipe,
    Space,
    TrainedRouter,
    gain,
    judge_features,
)

WAVES = 512  # random Fourier features
PENALTIES = 10.0 ** np.arange(-1.5, 2.6, 0.25)
PROMPT_RECIPES = tuple(Recipe(gamma, 1.0, 0.0, text) for gamma in (0.3, 1.0) for text in (0.5, 1.0))
JUDGE_RECIPES = tuple(Recipe(gamma, 1.0, straight, 0.5) for gamma in (0.3, 1.0) for straight in (0.0, 0.5))
#: Labels from which leave-one-out gives way to a hold-out fifth, which costs less.
MANY = 4000


@dataclass(frozen=True, slots=True)
class _Rows:
    """Training data before a space is chosen: measured (n, d), hashed n-grams (n, COLUMNS), targets (n, 3)."""

    measured: np.ndarray
    grams: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class _Fitted:
    """`unseen`: outputs for each label by a model that did not see it."""

    model: Model
    unseen: np.ndarray
    error: float


def train(labels: Sequence[Label], seed: int = 0) -> TrainedRouter:
    """Raises BadInput where the labels cannot teach a difference."""
    targets = np.array([(one.edge, one.cloud, one.cloud - one.edge) for one in labels])
    if len(np.unique(targets[:, 2])) < 2:
        raise BadInput("the labels never differ between edge and cloud; there is nothing to learn from them")
    rng = np.random.default_rng(seed)
    measured = np.array([prompt_features(one.prompt) for one in labels])
    grams = np.array([hashed_row(one.prompt) for one in labels], dtype=np.float32)
    prompt = _best(_Rows(measured, grams, targets), PROMPT_RECIPES, rng)
    ranks = _ranks(gain(prompt.unseen))
    router = TrainedRouter(prompt.model, ranks, 0.7, _baseline(gain(prompt.unseen), targets))
    if any(one.edge_response is None for one in labels):
        return router
    return _with_judge(router, labels, targets, rng)


def _with_judge(
    router: TrainedRouter, labels: Sequence[Label], targets: np.ndarray, rng: np.random.Generator
) -> TrainedRouter:
    with_signals = all(one.signals is not None for one in labels)
    with_agreement = all(one.agreement is not None for one in labels)
    answers = [one.edge_response or "" for one in labels]
    measured = np.array(
        [
            judge_features(
                one.prompt,
                answer,
                one.signals if with_signals else None,
                one.agreement if with_agreement else None,
            )
            for one, answer in zip(labels, answers, strict=True)
        ]
    )
    grams = np.array([hashed_row(answer) for answer in answers], dtype=np.float32)
    judge = _best(_Rows(measured, grams, targets), JUDGE_RECIPES, rng)
    return replace(
        router,
        judge=judge.model,
        judge_ranks=_ranks(gain(judge.unseen)),
        certainty=isotonic.fit(judge.unseen[:, 0], targets[:, 0]),
        judge_has_signals=with_signals,
        judge_has_agreement=with_agreement,
    )


def _baseline(gains: np.ndarray, targets: np.ndarray) -> Baseline:
    parts = np.array_split(np.argsort(gains, kind="stable"), 10)
    edge, cloud = (tuple(float(targets[part, side].mean()) for part in parts) for side in (0, 1))
    return Baseline(edge, cloud, len(gains))


def _ranks(gains: np.ndarray) -> isotonic.Isotonic:
    """A rising map from gain to the share of labels that gain less, open beyond both ends so that it never ties."""
    knots = np.quantile(gains, np.linspace(0.0, 1.0, 129))
    spread = max(float(knots[-1] - knots[0]), 1e-6)
    knots = np.maximum.accumulate(knots + np.arange(129) * spread * 1e-9)
    knots = np.concatenate([[knots[0] - 2 * spread], knots, [knots[-1] + 2 * spread]])
    levels = np.concatenate([[0.0], np.linspace(0.005, 0.995, 129), [1.0]])
    return isotonic.Isotonic(tuple(knots.tolist()), tuple(levels.tolist()))


def _best(rows: _Rows, recipes: Sequence[Recipe], rng: np.random.Generator) -> _Fitted:
    """The recipe whose predictions of unseen labels err least. With many labels the last one is taken: there
    the choice matters little, and costs much."""
    seeds = rng.integers(0, 2**31)
    if len(rows.targets) > MANY:
        return _fit(rows, recipes[-1], np.random.default_rng(seeds))
    fitted = [_fit(rows, recipe, np.random.default_rng(seeds)) for recipe in recipes]
    return min(fitted, key=lambda one: one.error)


def _fit(rows: _Rows, recipe: Recipe, rng: np.random.Generator) -> _Fitted:
    space = _space(rows, recipe, rng)
    measured = space.measured(rows.measured)
    grams = rows.grams * space.rarity
    norms = np.linalg.norm(grams, axis=1, keepdims=True)
    grams *= np.sqrt(recipe.text) / np.where(norms > 0.0, norms, 1.0)
    used = np.flatnonzero(space.rarity)
    columns = np.hstack([measured, grams[:, used]])
    weights, bias, unseen = _ridge(columns, rows.targets, rng)
    text_weights = np.zeros((COLUMNS, len(OUTPUTS)))
    text_weights[used] = weights[measured.shape[1] :]
    error = float(np.mean((unseen[:, 2] - rows.targets[:, 2]) ** 2))
    return _Fitted(Model(space, weights[: measured.shape[1]], text_weights, bias), unseen, error)


def _space(rows: _Rows, recipe: Recipe, rng: np.random.Generator) -> Space:
    """Directions in orthogonal blocks (Yu et al. 2016): less variance than independent ones."""
    width = rows.measured.shape[1]
    blocks = []
    for _ in range(-(-WAVES // width)):
        square, _ = np.linalg.qr(rng.standard_normal((width, width)))
        blocks.append(square * np.linalg.norm(rng.standard_normal((width, width)), axis=1)[:, None])
    seen = (rows.grams != 0).sum(axis=0)
    rarity = np.where(seen > 0, np.log((len(rows.grams) + 1) / (seen + 1)), 0.0)
    return Space(
        recipe=recipe,
        mean=rows.measured.mean(axis=0),
        deviation=rows.measured.std(axis=0) + 1e-6,
        directions=np.vstack(blocks)[:WAVES] * np.sqrt(2.0 * recipe.gamma),
        offsets=rng.uniform(0.0, 2.0 * np.pi, WAVES),
        rarity=rarity,
    )


def _ridge(
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
    """Dual ridge. One eigendecomposition gives every penalty's exact leave-one-out residuals."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
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
    return rows.T @ dual, unseen


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
