"""Training on many labels: rows are made a few at a time, and what is learned is what dense rows teach."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.routes.difficulty import ridge as regression
from weighbridge.routes.difficulty.alike import groups_of
from weighbridge.routes.difficulty.embedders.vectors import Source, VectorTable
from weighbridge.routes.difficulty.features import COLUMNS, hashed
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.difficulty.model import gain
from weighbridge.routes.difficulty.ridge import Dense, ridge
from weighbridge.routes.difficulty.rows import Grams, Part
from weighbridge.routes.difficulty.train import train


class _Watched(Dense):
    """Rows that remember how many of them were wanted at once."""

    most = 0

    def take(self, picks: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(picks))
        return super().take(picks)


def _data(count: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((count, width))
    return rows, rows[:, :3] * 0.5 + 2.0 + rng.standard_normal((count, 3))


def test_many_rows_are_never_all_there_at_once() -> None:
    rows, targets = _data(9000)
    matrix = _Watched(rows)
    ridge(matrix, targets, np.random.default_rng(0))
    assert matrix.most <= 2048


def test_blocks_teach_what_the_whole_does() -> None:
    """The weights are those of the normal equations in double precision with one of the penalties."""
    rows, targets = _data(5000)
    weights, bias, unseen = ridge(Dense(rows), targets, np.random.default_rng(0))
    centred, wanted = rows - rows.mean(axis=0), targets - targets.mean(axis=0)
    for output in range(3):
        exact = [
            np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T @ wanted[:, output])
            for penalty in regression.PENALTIES_OF_MANY
        ]
        assert min(float(np.abs(one - weights[:, output]).max()) for one in exact) < 1e-6
    assert np.allclose(bias, targets.mean(axis=0) - rows.mean(axis=0) @ weights)
    assert 0.9 < ((unseen - targets) ** 2).mean() < 1.1  # the noise, of variance one, and no more


def test_few_rows_and_many_of_the_same_law_teach_much_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, targets = _data(300)
    few, _, unseen = ridge(Dense(rows), targets, np.random.default_rng(0))
    monkeypatch.setattr(regression, "MANY", 100)
    many, _, folded = ridge(Dense(rows), targets, np.random.default_rng(0))
    assert np.abs(few - many).max() < 0.1
    assert abs(((unseen - targets) ** 2).mean() - ((folded - targets) ** 2).mean()) < 0.05


def test_rows_that_nearly_equal_each_other_are_unseen_together() -> None:
    """600 rows, each nine times with little changed, all with the first one's noise. Who has seen eight of nine learns
    the noise by heart, and believes that it may."""
    rng = np.random.default_rng(4)
    base, truth = rng.standard_normal((600, 200)), rng.standard_normal((200, 1)) * 0.1
    noisy = base @ truth + 3.0 * rng.standard_normal((600, 1))
    origin = np.repeat(np.arange(600), 9)
    rows = base[origin] + 0.05 * rng.standard_normal((5400, 200))
    fresh = rng.standard_normal((2000, 200))
    errors = []
    for groups in (None, origin):
        weights, bias, unseen = ridge(Dense(rows), noisy[origin], np.random.default_rng(0), groups)
        errors.append((((fresh @ (weights - truth)) + bias) ** 2).mean())
        told = ((unseen - noisy[origin]) ** 2).mean()
    assert errors[1] < 0.8 * errors[0]
    assert told > 9.0  # of the last, with groups: no less than the noise


@given(st.lists(st.integers(0, 40), min_size=20, max_size=300), st.randoms())
def test_a_group_is_in_one_fold_unless_it_is_half_of_one(
    found: list[int], order: np.random.Generator
) -> None:
    groups = np.unique(found, return_inverse=True)[1]
    fold = regression._folds(len(groups), groups, np.random.default_rng(order.randrange(99)))  # type: ignore[attr-defined]
    assert set(fold.tolist()) <= set(range(5))
    for group, size in enumerate(np.bincount(groups)):
        if size * 10 <= len(groups):
            assert len(set(fold[groups == group].tolist())) == 1


@pytest.mark.parametrize("width", [1, 255, 256, 700])
def test_a_half_is_taken_from_a_whole(width: int) -> None:
    rng = np.random.default_rng(0)
    one, other = (rows.T @ rows for rows in rng.standard_normal((2, 40, width)))
    left = regression._Halves(one).taken_from(one + other)
    assert np.allclose(left, other, atol=1e-4)
    assert np.array_equal(left, left.T)


def test_texts_with_a_word_in_twenty_left_out_are_alike_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghiklmnoprstuw"), rng.integers(3, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choice(words, 60)) for _ in range(120)]
    copies = [
        " ".join([word for word in text.split() if rng.random() > 0.05]) for text in texts for _ in range(5)
    ]
    groups = Grams([*texts, *copies]).groups()
    assert len(set(groups[:120].tolist())) == 120
    of_copies = groups[120:].reshape(120, 5)
    assert (of_copies == groups[:120, None]).mean() > 0.97


def test_short_and_empty_texts_have_groups_too() -> None:
    groups = Grams(["", "hello", "hello", "", "2 + 2", "hello!", "good night"]).groups()
    assert groups[1] == groups[2]
    assert len({int(groups[at]) for at in (0, 1, 4, 6)}) == 4
    assert len(groups_of([], COLUMNS)) == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=6), st.randoms())
def test_sparse_rows_are_the_dense_ones(texts: list[str], order: np.random.Generator) -> None:
    grams = Grams(texts)
    picks = np.array([order.randrange(len(texts)) for _ in range(5)])  # type: ignore[attr-defined]
    expected = np.zeros((5, COLUMNS), np.float32)
    for row, pick in zip(expected, picks, strict=True):
        columns, weights = hashed(texts[pick])
        exact = np.zeros(COLUMNS)
        np.add.at(exact, columns, weights)
        row[:] = exact
    assert np.array_equal(grams.dense(picks), expected)
    every = grams.dense(np.arange(len(texts)))
    assert np.array_equal(grams.seen(), (every != 0).sum(axis=0))


def test_a_text_takes_room_for_the_words_it_has() -> None:
    """A dense row takes 16 KiB whatever the text."""
    texts = [f"What is {number} times {number + 7}, and is it more than a dozen?" for number in range(500)]
    Grams(texts)  # words are remembered
    tracemalloc.start()
    try:
        grams = Grams(texts)
        assert tracemalloc.get_traced_memory()[0] / len(grams) < 2048
    finally:
        tracemalloc.stop()


def test_a_part_is_scaled_as_its_block_will_scale_it() -> None:
    values = np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32) * 3 + 1
    part = Part.of("minilm", 0, values)
    assert np.allclose(part.mean, values.mean(axis=0), atol=1e-5)
    assert np.allclose(part.deviation, values.std(axis=0), atol=1e-5)
    columns = part.columns(np.arange(300))
    assert np.allclose((columns**2).sum(axis=1).mean(), 1.0, atol=0.05)


def test_a_router_of_many_labels_ranks_as_one_of_few_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of many labels, on few: text, a vector beside it, and answers."""
    rng = np.random.default_rng(3)
    hard = rng.random(160) < 0.5
    labels = [
        Label(f"{'prove the theorem' if one else 'say hello'} number {at}", float(not one), 1.0, None, "42")
        for at, one in enumerate(hard)
    ]
    vectors = rng.standard_normal((160, 4)).astype(np.float32)
    vectors[:, 0] += 4.0 * hard
    table = VectorTable(Source("minilm", "m", (4,)), vectors)
    few = train(labels, 0, [table])
    monkeypatch.setattr(regression, "MANY", 100)
    many = train(labels, 0, [table])
    for router in (few, many):
        assert router.judge is not None
        scores = np.array([router.score(one.prompt) for one in labels])
        assert scores[hard].min() > scores[~hard].max()
    assert gain(many.prompt.outputs([0.0] * 30, "prove the theorem")) > 0.3
