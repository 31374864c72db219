"""Vectors at run time: late, broken or foreign ones cost a bounded wait and change nothing but the head."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from tests.fleet.backends import until
from tests.routes.routes import answer, ask, routed
from tests.routes.stub import Stub, serving
from weighbridge.routes.difficulty.embedders.vectors import (
    FAILURES,
    REST,
    EmbeddingFailed,
    Question,
    Readers,
    Source,
    Vector,
)
from weighbridge.routes.policy import Residency, ResidencyPolicy

SMALL = Source("edge", "small", (2, 3))
MINILM = Source("minilm", "m", (4,))
QUESTION = Question.alone("How heavy is it?")


class Scripted:
    """Gives what it is told to, `after` so many seconds."""

    def __init__(self, source: Source, what: Any = None, after: float = 0.0) -> None:
        self.name = source.name
        self.asked: list[Question] = []
        self.cancelled = 0
        self.closed = False
        self._what = what if what is not None else Vector(source, np.ones(source.width, np.float32))
        self._after = after

    async def embed(self, question: Question) -> Vector:
        self.asked.append(question)
        try:
            await asyncio.sleep(self._after)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self._what, Exception):
            raise self._what
        vector: Vector = self._what
        return vector

    async def close(self) -> None:
        self.closed = True


async def test_all_that_comes_in_time_is_used() -> None:
    readers = Readers([(Scripted(SMALL), SMALL), (Scripted(MINILM, after=0.05), MINILM)], 60.0)
    reading = await readers.read(QUESTION)
    assert set(reading.vectors) == {"edge", "minilm"}
    assert str(reading) == "scored by text and edge and minilm"


@pytest.mark.parametrize("most", [60.0, 0.1])
async def test_a_late_one_is_left_after_the_wait_and_cancelled(most: float) -> None:
    late = Scripted(SMALL, after=600.0)
    readers = Readers([(late, SMALL), (Scripted(MINILM), MINILM)], 0.2)
    started = time.monotonic()
    reading = await readers.read(QUESTION, most)
    assert time.monotonic() - started < 30.0
    assert (set(reading.vectors), late.cancelled) == ({"minilm"}, 1)
    assert (
        str(reading) == f"scored by text and minilm; without edge: nothing came within {min(most, 0.2):g} s"
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (EmbeddingFailed("edge: no connection"), "edge: no connection"),
        (RuntimeError("a fault of its own"), "a fault of its own"),
        (Vector(Source("edge", "other", (2, 3)), np.ones(5)), "trained with the edge vectors of small"),
        (Vector(Source("edge", "small", (3, 3)), np.ones(6)), "these are of small (6 numbers)"),
    ],
)
async def test_a_failure_of_any_kind_is_a_reason_and_no_error(what: Any, why: str) -> None:
    reading = await Readers([(Scripted(SMALL, what), SMALL)], 60.0).read(QUESTION)
    assert reading.vectors == {}
    assert why in reading.missing["edge"]


async def test_one_that_keeps_failing_rests() -> None:
    now = [0.0]
    broken = Scripted(SMALL, EmbeddingFailed("down"))
    readers = Readers([(broken, SMALL)], 60.0, clock=lambda: now[0])
    for _ in range(FAILURES + 5):
        assert not (await readers.read(QUESTION)).vectors
    assert len(broken.asked) == FAILURES
    now[0] = REST + 1.0
    await readers.read(QUESTION)
    assert len(broken.asked) == FAILURES + 1


async def test_whoever_is_cancelled_while_waiting_leaves_nothing() -> None:
    late = Scripted(SMALL, after=600.0)
    reading = asyncio.create_task(Readers([(late, SMALL)], 600.0).read(QUESTION))
    await until(lambda: late.asked)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert late.cancelled == 1


def scored(prompt: str, vectors: Any = None) -> float:
    """Hard by its text, easy by the edge's state."""
    return 0.1 if vectors and "edge" in vectors else 0.9


@pytest.mark.parametrize("works", [True, False])
async def test_a_route_decides_by_what_is_there_and_its_ticket_says_so(works: bool) -> None:
    state = Scripted(SMALL, None if works else EmbeddingFailed("edge: out of order"))
    edge, cloud = Stub(answer=lambda body: "local", logprob=-0.01), Stub(answer=lambda body: "remote")
    readers = Readers([(state, SMALL)], 60.0)
    async with (
        serving(edge, cloud) as urls,
        routed(urls, scorer=scored, readers=readers, threshold=0.5) as over,
    ):
        found = await answer(over, ask("hello", tenant="jane"))
    placed = (found.message["content"], found.ticket.placement)
    assert placed == (("local", "edge") if works else ("remote", "cloud"))
    said = "scored by text and edge" if works else "scored by text; without edge: edge: out of order"
    assert said in found.ticket.decisions
    assert found.ticket.error is None
    [question] = state.asked
    assert (question.text, question.tenant) == ("hello", "jane")
    assert state.closed


@pytest.mark.parametrize(
    ("policy", "fields"),
    [(ResidencyPolicy(default=Residency.NEVER), {}), (ResidencyPolicy(), {"placement": "only_edge"})],
)
async def test_nobody_is_asked_about_a_prompt_whose_place_is_settled(
    policy: ResidencyPolicy, fields: Any
) -> None:
    state = Scripted(SMALL)
    edge, cloud = Stub(answer=lambda body: "local", logprob=-0.01), Stub()
    readers = Readers([(state, SMALL)], 60.0)
    async with (
        serving(edge, cloud) as urls,
        routed(urls, scorer=scored, readers=readers, threshold=0.5, policy=policy) as over,
    ):
        found = await answer(over, ask("hello", **fields))
    assert (found.message["content"], found.ticket.placement) == ("local", "edge")
    assert state.asked == []
    assert cloud.log == []


async def test_a_deadline_is_not_spent_on_looking_at_the_prompt() -> None:
    """A quarter of it at most."""
    late = Scripted(SMALL, after=600.0)
    edge, cloud = Stub(answer=lambda body: "local", logprob=-0.01), Stub(answer=lambda body: "remote")
    readers = Readers([(late, SMALL)], 600.0)
    async with (
        serving(edge, cloud) as urls,
        routed(urls, scorer=scored, readers=readers, threshold=1.0) as over,
    ):
        found = await asyncio.wait_for(answer(over, ask("hello", deadline_ms=8_000)), 60)
    assert "scored by text; without edge: nothing came within 2 s" in found.ticket.decisions
