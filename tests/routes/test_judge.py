"""Agreement of several local answers, as the judge uses it and as the cascade draws them over real sockets."""

from __future__ import annotations

import json
from itertools import count
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routes.routes import answer, ask, routed
from tests.routes.stub import BROKEN, OK, Stub, serving
from weighbridge.routes.judge import agreement, is_json, pooled, share
from weighbridge.routes.settings import CascadeSettings

SAMPLED = CascadeSettings(samples=5, threshold=0.6)


@given(st.floats(0.0, 1.0), st.integers(1, 16), st.data())
def test_pooling_is_a_probability_that_rises_with_both(
    first: float, samples: int, data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, samples)) / samples
    high = data.draw(st.integers(round(low * samples), samples)) / samples
    one, other = pooled(first, low, samples), pooled(first, high, samples)
    assert 0.0 < one <= other < 1.0
    assert pooled(min(first, 0.5), low, samples) <= pooled(max(first, 0.5), low, samples)


def test_pooling_of_what_is_known_by_hand() -> None:
    assert pooled(0.5, 0.5, 4) == pytest.approx(0.5)
    assert pooled(5 / 6, 1.0, 4) == pytest.approx(5 / 6)  # four of four under a uniform prior: 5/6


def test_answers_agree_by_their_last_number_else_by_their_words() -> None:
    assert agreement("6 * 7 = 42", "The answer is 42.0") == 1.0
    assert agreement("It is 1,042", "It is 42") == 0.0
    assert agreement("the capital is Paris", "the capital is Paris.") == 1.0
    assert share("it is 4", ["4", "so 4", "5", "it may be 9"]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        share("4", [])


def edge_that_says(*texts: str, logprob: float | None = None, fates: Any = ()) -> Stub:
    """The first answer, then one text for each further sample; they start together, so in no order."""
    numbers = count()
    return Stub(answer=lambda body: texts[next(numbers) % len(texts)], logprob=logprob, fates=fates)


async def test_an_edge_that_contradicts_itself_is_not_trusted() -> None:
    """Its tokens were likely, one by one; the answers scatter all the same."""
    edge, cloud = edge_that_says("it is 4", "it is 5", "6", "it is 7", "8", logprob=-0.4), Stub()
    async with serving(edge, cloud) as urls:
        async with routed(urls, cascade=SAMPLED) as over:
            found = await answer(over, ask("what is it"))
            assert over.in_flight() == 0
        async with routed(urls, cascade=CascadeSettings(threshold=0.6)) as alone:
            trusted = await answer(alone, ask("what is it"))
    assert found.message["content"] == "what is it"  # the cloud's echo
    assert trusted.message["content"] == "it is 4"
    assert "0 of 4 further samples agree" in " ".join(found.ticket.decisions)
    assert len(edge.log) == 6
    purposes = [(leg.place, leg.purpose) for leg in found.ticket.legs]
    assert purposes == [("edge", "answer"), *[("edge", "sample")] * 4, ("cloud", "answer")]


async def test_an_edge_that_repeats_itself_is_trusted_more_than_its_tokens_say() -> None:
    edge, cloud = edge_that_says("it is 4", "4", "so it is 4", "4.0", "the answer: 4", logprob=-0.7), Stub()
    async with serving(edge, cloud) as urls, routed(urls, cascade=SAMPLED) as over:
        found = await answer(over, ask("what is it", temperature=0, seed=3))
    assert found.message["content"] == "it is 4"
    assert found.ticket.confidence is not None
    assert found.ticket.confidence > 0.6
    assert cloud.log == []
    assert "4 of 4 further samples agree" in " ".join(found.ticket.decisions)
    asked = [json.loads(entry.raw) for entry in edge.log]
    assert [body["temperature"] for body in asked] == [0, 0.8, 0.8, 0.8, 0.8]
    assert len({body["seed"] for body in asked}) == 5  # each its own draw
    assert ["logprobs" in body for body in asked] == [True, False, False, False, False]


async def test_samples_that_fail_are_left_out() -> None:
    edge = edge_that_says("it is 4", logprob=-0.1, fates=[OK, BROKEN, OK, BROKEN, OK])
    async with serving(edge, Stub()) as urls, routed(urls, cascade=SAMPLED) as over:
        found = await answer(over, ask("what is it"))
    assert found.message["content"] == "it is 4"
    assert "2 of 2 further samples agree" in " ".join(found.ticket.decisions)


async def test_a_stream_that_is_not_complete_in_its_window_is_not_sampled() -> None:
    edge = Stub(answer=lambda body: " ".join(map(str, range(200))), logprob=-0.1)
    async with serving(edge, Stub()) as urls, routed(urls, cascade=SAMPLED) as over:
        found = await answer(over, ask("go on", stream=True))
    assert len(edge.log) == 1
    assert found.ticket.placement == "edge"


async def test_without_log_probabilities_agreement_judges_alone() -> None:
    edge, cloud = edge_that_says("it is 4", "5", "6", "7", "8"), Stub()
    async with serving(edge, cloud) as urls, routed(urls, cascade=SAMPLED) as over:
        found = await answer(over, ask("what is it"))
    assert found.message["content"] == "what is it"
    assert found.ticket.confidence is not None
    assert found.ticket.confidence < 0.5


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('{"a": 1}', True),
        (' ```json\n{"a": 1}\n```\n', True),
        ("```[1]```", True),
        ("json [1]", False),
        ("", False),
        ("{" + " " * 200_000 + "}", True),
        ("{" + "\n" * 200_000, False),
        ("[" * 100_000, False),
    ],
    ids=lambda one: str(one)[:20],
)
def test_an_answer_is_looked_at_as_json_in_time_that_grows_with_it_alone(text: str, holds: bool) -> None:
    began = thread_time()
    assert is_json(text) is holds
    assert thread_time() - began < 0.5


@pytest.mark.parametrize("odd", ["5", "x", [], {}, True, 1e30, None, -7])
async def test_an_edge_that_takes_fields_of_another_type_is_judged_all_the_same(odd: Any) -> None:
    """What nobody here reads passes to whoever answers; so no reckoning may rest on its type."""
    edge, cloud = Stub(answer=lambda body: "42", logprob=-0.1), Stub()
    async with serving(edge, cloud) as urls, routed(urls, cascade=SAMPLED) as over:
        found = await answer(over, ask(top_logprobs=odd, seed=odd, temperature=odd))
    assert found.ticket.error is None
    assert found.message["content"] == "42"
