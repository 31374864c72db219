"""Time on a route: thoughts are first tokens, a deadline bounds every leg, and a place that asks for rest gets it."""

from __future__ import annotations

import email.utils
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.routes.routes import answer, ask, routed
from tests.routes.stub import BUSY, HANG, Stub, serving
from weighbridge.errors import Refused
from weighbridge.routes.errors import CloudDenied, NoPlaceCan, TooLate
from weighbridge.routes.policy import share_seconds
from weighbridge.routes.settings import CascadeSettings

SURE, UNSURE = -0.01, -3.0
#: The deadline of these tests, in seconds: long beside what a busy machine adds, short beside a place that hangs.
DEADLINE = 2.0


def said(text: str, **options: Any) -> Stub:
    return Stub(answer=lambda body: text, **options)


def date_in(seconds: float) -> str:
    """An HTTP date so far ahead. It knows whole seconds only."""
    return email.utils.formatdate(math.ceil(time.time() + seconds), usegmt=True)


# -- a thought is a first token ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "logprob"), [("only_cloud", None), ("only_edge", None), ("auto", None), ("auto", SURE)]
)
async def test_a_stream_begins_with_its_first_thought(placement: str, logprob: float | None) -> None:
    """Judged or not, with log-probabilities or without."""
    edge, cloud = (said("42", thoughts=60, pause=0.05, logprob=logprob) for _ in range(2))
    async with serving(edge, cloud) as urls, routed(urls) as over:
        journey = await over.gateway.admit(ask(stream=True, placement=placement))
        began = time.monotonic()
        try:
            await journey.open()
            first = await anext(aiter(journey.stream()))
        finally:
            await journey.close()
        took = time.monotonic() - began
    assert b"thought 0" in first.raw
    assert took < 60 * 0.05  # before the answer, which comes behind all thoughts


# -- the deadline bounds every leg ------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("placement", ["prefer_cloud", "auto"])
async def test_a_place_that_hangs_leaves_the_other_its_share(placement: str, stream: bool) -> None:
    hangs, answers = said("never", fates=[HANG] * 9), said("in time")
    edge, cloud = (answers, hangs) if placement == "prefer_cloud" else (hangs, answers)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        began = time.monotonic()
        found = await answer(over, ask(stream=stream, placement=placement, deadline_ms=DEADLINE * 1e3))
        took = time.monotonic() - began
    assert found.message["content"] == "in time"
    assert took < DEADLINE
    first, second = found.ticket.legs
    assert "share of the deadline" in (first.error or "")
    assert (first.outcome, second.outcome) == ("error", "stop")
    assert any("answers instead" in note for note in found.ticket.decisions)
    assert found.ticket.degraded == (placement == "prefer_cloud")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("placement", ["only_cloud", "only_edge", "prefer_cloud", "prefer_edge", "auto"])
async def test_where_all_hang_the_deadline_is_kept_and_said(placement: str, race: bool, stream: bool) -> None:
    edge, cloud = said("never", fates=[HANG] * 9), said("never", fates=[HANG] * 9)
    cascade = CascadeSettings(race=race)
    async with serving(edge, cloud) as urls, routed(urls, cascade=cascade) as over:
        began = time.monotonic()
        with pytest.raises(TooLate) as caught:
            await answer(over, ask(stream=stream, placement=placement, deadline_ms=600))
        took = time.monotonic() - began
    assert caught.value.status == 504
    assert 0.55 < took < 2.0


async def test_an_answer_that_trickles_is_late_as_a_whole_and_in_time_as_a_stream() -> None:
    """Of a stream, what is held back has to be there: bytes that are out cannot be taken back."""
    edge, cloud = said("local"), said("remote words that take their time", pause=0.2)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        late = {"placement": "only_cloud", "deadline_ms": 700}
        with pytest.raises(TooLate):
            await answer(over, ask(**late))
        found = await answer(over, ask(stream=True, **late))
    assert found.message["content"] == "remote words that take their time"
    assert found.error is None


async def test_further_samples_take_no_more_than_the_draft_might_have() -> None:
    """Samples that hang are left out in time for the cloud to answer."""
    edge = said("local", logprob=UNSURE, fates=["ok", *[HANG] * 9])
    cloud = said("remote")
    async with serving(edge, cloud) as urls, routed(urls, cascade=CascadeSettings(samples=3)) as over:
        began = time.monotonic()
        found = await answer(over, ask(deadline_ms=DEADLINE * 1e3))
        took = time.monotonic() - began
    assert found.message["content"] == "remote"
    assert took < DEADLINE


@given(
    st.floats(0.01, 600.0),
    st.none() | st.floats(0.0, 1e4),
    st.lists(st.none() | st.floats(0.0, 1e4), max_size=4),
)
def test_everybody_has_at_least_half_an_even_part(
    left: float, own: float | None, following: list[float | None]
) -> None:
    share = share_seconds(left, own, following)
    least = left / (2 * (1 + len(following)))
    assert least * 0.999 <= share <= left - len(following) * least * 0.999
    assert following or share == pytest.approx(left)


def test_shares_are_as_what_is_expected() -> None:
    assert share_seconds(2.0, None, [None]) == 1.0
    assert share_seconds(2.0, 3.0, [1.0]) == 1.5
    assert share_seconds(2.0, 1.0, [2.0]) == pytest.approx(2 / 3)
    assert share_seconds(2.0, 100.0, [0.1]) == 1.5
    assert share_seconds(2.0, 0.1, [100.0]) == 0.5
    assert share_seconds(3.0, 1.0, [None, 1.0]) == pytest.approx(1.0)


# -- Retry-After is kept to -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cloud_that_rests_is_not_asked_and_the_client_is_told_until_when(
    form: str, stream: bool
) -> None:
    rest = "60" if form == "seconds" else lambda: date_in(60)
    edge, cloud = said("local"), said("remote", fates=[BUSY] * 9, rest=rest)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        with pytest.raises(Refused) as first:
            await answer(over, ask(stream=stream, placement="only_cloud"))
        with pytest.raises(CloudDenied) as second:
            await answer(over, ask(stream=stream, placement="only_cloud"))
        found = await answer(over, ask(stream=stream, placement="prefer_cloud"))
        calls = len(cloud.log)
    assert (first.value.status, second.value.status) == (429, 429)
    for error in (first.value, second.value):
        assert error.retry_after is not None
        assert 50 < error.retry_after <= 61
    assert "left alone" in str(second.value)
    assert found.message["content"] == "local"
    assert found.ticket.degraded
    assert calls == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_it_is_asked_again_when_it_said_and_not_before(form: str) -> None:
    rest = "1" if form == "seconds" else lambda: date_in(1)
    edge, cloud = said("local"), said("remote", fates=[BUSY], rest=rest)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask(placement="only_cloud"))
    assert found.message["content"] == "remote"
    first, second = (entry.at for entry in cloud.log)
    assert second - first >= (0.95 if form == "seconds" else 0.9)


async def test_an_edge_that_rests_and_no_other_that_may_says_until_when() -> None:
    edge, cloud = said("local", fates=[BUSY] * 9, rest="60"), said("remote")
    async with serving(edge, cloud) as urls, routed(urls) as over:
        with pytest.raises(Refused):
            await answer(over, ask(placement="only_edge"))
        with pytest.raises(NoPlaceCan) as caught:
            await answer(over, ask(placement="only_edge"))
    assert caught.value.status == 503
    assert caught.value.retry_after is not None
    assert 50 < caught.value.retry_after <= 60


async def test_a_rest_that_the_deadline_does_not_allow_is_not_waited_for() -> None:
    edge, cloud = said("local"), said("remote", fates=[BUSY] * 9, rest="5")
    async with serving(edge, cloud) as urls, routed(urls) as over:
        began = time.monotonic()
        found = await answer(over, ask(placement="prefer_cloud", deadline_ms=DEADLINE * 1e3))
        took = time.monotonic() - began
    assert found.message["content"] == "local"
    assert took < DEADLINE
    assert len(cloud.log) == 1
