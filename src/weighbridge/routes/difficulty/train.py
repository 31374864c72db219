"""Labels to a router. Every choice (penalty, widths, how much the words count) is made on the labels alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.difficulty import isotonic
from weighbridge.routes.difficulty.embedders.vectors import VectorTable
from weighbridge.routes.difficulty.features import COLUMNS, prompt_features
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.difficulty.model import OUTPUTS, Block, Model, Recipe, Space, gain
from weighbridge.routes.difficulty.ridge import MANY, ridge
from weighbridge.routes.difficulty.rows import Columns, Grams, Part, Rows
from weighbridge.routes.difficulty.shares import chosen_shares, parts_of
from weighbridge.routes.difficulty.trained import Baseline, Head, TrainedRouter, judge_features

WAVES = 512  # random Fourier features
PROMPT_RECIPES = tuple(Recipe(gamma, 1.0, 0.0, text) for gamma in (0.3, 1.0) for text in (0.5, 1.0))
JUDGE_RECIPES = tuple(Recipe(gamma, 1.0, straight, 0.5) for gamma in (0.3, 1.0) for straight in (0.0, 0.5))


@dataclass(frozen=True, slots=True)
class _Fitted:
    """`unseen`: outputs for each label by a model that did not see it."""

    model: Model
    unseen: np.ndarray
    error: float


def train(labels: Sequence[Label], seed: int = 0, tables: Sequence[VectorTable] = ()) -> TrainedRouter:
    """`tables`: vectors of the labels' prompts, in the same order. Raises BadInput where there is nothing to learn."""
    targets = np.array([(one.edge, one.cloud, one.cloud - one.edge) for one in labels])
    if len(np.unique(targets[:, 2])) < 2:
        raise BadInput("the labels never differ between edge and cloud; there is nothing to learn from them")
    rng = np.random.default_rng(seed)
    grams = Grams(one.prompt for one in labels)
    groups = grams.groups() if len(labels) > MANY else None
    measured = _table(prompt_features(one.prompt) for one in labels)
    router = _of_prompts(Rows(measured, grams, targets, groups), rng, seed, tables)
    if any(one.edge_response is None for one in labels):
        return router
    return _with_judge(router, labels, targets, groups, rng)


def _of_prompts(
    rows: Rows, rng: np.random.Generator, seed: int, tables: Sequence[VectorTable]
) -> TrainedRouter:
    """The router as it is without answers."""
    prompt = _best(rows, PROMPT_RECIPES, rng)
    return TrainedRouter(
        prompt.model,
        _ranks(gain(prompt.unseen)),
        0.7,
        _baseline(gain(prompt.unseen), rows.targets),
        sources=tuple(table.source for table in tables),
        heads=_heads(rows, prompt.model.space, tables, seed),
    )


def _table(rows: Iterable[list[float]]) -> np.ndarray:
    """(n, features), without a list of lists in between."""
    arrays = [np.array(row) for row in rows]
    return np.stack(arrays)


def _heads(rows: Rows, space: Space, tables: Sequence[VectorTable], seed: int) -> tuple[Head, ...]:
    """One head for each choice of sources that all tell something, over the space of the text alone."""
    if not tables:
        return ()
    base, heads = Columns(rows, space), []
    for size in range(len(tables), 0, -1):
        for choice in combinations(tables, size):
            rng = np.random.default_rng(seed)
            parts = chosen_shares(base, rows.targets, parts_of(choice), rng, rows.groups)
            telling = {part.source for part in parts if part.share > 0.0}
            if len(telling) == size:
                fitted = _fit(rows, space, rng, parts)
                names = tuple(table.source.name for table in choice)
                heads.append(Head(names, fitted.model, _ranks(gain(fitted.unseen))))
    return tuple(heads)


def _with_judge(
    router: TrainedRouter,
    labels: Sequence[Label],
    targets: np.ndarray,
    groups: np.ndarray | None,
    rng: np.random.Generator,
) -> TrainedRouter:
    with_signals = all(one.signals is not None for one in labels)
    with_agreement = all(one.agreement is not None for one in labels)
    answers = [one.edge_response or "" for one in labels]
    measured = _table(
        judge_features(
            one.prompt,
            answer,
            one.signals if with_signals else None,
            one.agreement if with_agreement else None,
        )
        for one, answer in zip(labels, answers, strict=True)
    )
    judge = _best(Rows(measured, Grams(answers), targets, groups), JUDGE_RECIPES, rng)
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


def _best(rows: Rows, recipes: Sequence[Recipe], rng: np.random.Generator) -> _Fitted:
    """The recipe whose predictions of unseen labels err least. With many labels the last one is taken: there
    the choice matters little, and costs much."""
    seeds = rng.integers(0, 2**31)
    tried = recipes[-1:] if len(rows.targets) > MANY else recipes
    return min((_by_recipe(rows, recipe, np.random.default_rng(seeds)) for recipe in tried), key=_error)


def _by_recipe(rows: Rows, recipe: Recipe, rng: np.random.Generator) -> _Fitted:
    return _fit(rows, _space(rows, recipe, rng), rng)


def _error(fitted: _Fitted) -> float:
    return fitted.error


def _fit(rows: Rows, space: Space, rng: np.random.Generator, parts: Sequence[Part] = ()) -> _Fitted:
    """Parts without a share are left out."""
    columns = Columns(rows, space, parts)
    weights, bias, unseen = ridge(columns, rows.targets, rng, rows.groups)
    measured, start = columns.measured, columns.measured + len(columns.used)
    text_weights = np.zeros((COLUMNS, len(OUTPUTS)))
    text_weights[columns.used] = weights[measured:start]
    blocks = []
    for part in columns.parts:
        end = start + len(part.mean)
        scaled = weights[start:end] * np.sqrt(part.share)
        blocks.append(Block(part.source, part.start, part.share, part.mean, part.deviation, scaled))
        start = end
    error = float(np.mean((unseen[:, 2] - rows.targets[:, 2]) ** 2))
    return _Fitted(Model(space, weights[:measured], text_weights, bias, tuple(blocks)), unseen, error)


def _space(rows: Rows, recipe: Recipe, rng: np.random.Generator) -> Space:
    """Directions in orthogonal blocks (Yu et al. 2016): less variance than independent ones."""
    width = rows.measured.shape[1]
    blocks = []
    for _ in range(-(-WAVES // width)):
        square, _ = np.linalg.qr(rng.standard_normal((width, width)))
        blocks.append(square * np.linalg.norm(rng.standard_normal((width, width)), axis=1)[:, None])
    seen = rows.grams.seen()
    rarity = np.where(seen > 0, np.log((len(rows.grams) + 1) / (seen + 1)), 0.0)
    return Space(
        recipe=recipe,
        mean=rows.measured.mean(axis=0),
        deviation=rows.measured.std(axis=0) + 1e-6,
        directions=np.vstack(blocks)[:WAVES] * np.sqrt(2.0 * recipe.gamma),
        offsets=rng.uniform(0.0, 2.0 * np.pi, WAVES),
        rarity=rarity,
    )
