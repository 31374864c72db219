"""Ten minutes of a server: sums are what was put in, quantiles are those of the window, and all of it is bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.server.watching.history import (
    KEPT_ITERATIONS,
    LEVELS,
    WINDOW_SECONDS,
    Iterations,
    ServerHistory,
)
from weighbridge.ticket import Ticket


def ticket(
    ttft: float | None = 0.5, output: int = 11, gap: float = 0.05, reason: str = "stop", **more: float
) -> Ticket:
    made = Ticket("id", "ann", "m", "", 100, 64, arrived=1000.0)
    made.cached_tokens, made.output_tokens, made.finish_reason = 40, output, reason
    if ttft is not None:
        made.first_token = made.arrived + ttft
        made.finished = made.first_token + gap * (output - 1)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_a_second_has_what_happened_in_it_and_what_was_so_at_its_end() -> None:
    history = ServerHistory()
    history.finished(ticket(cost_usd=0.25))
    history.finished(ticket(reason="abort"))
    for status in (200, 429, 503, 500, 400, 404):
        history.answered(status)
    history.close(1000, {"queued_tokens": 7, "unknown": 1}, 20)
    history.close(1001, {}, 0)
    told = history.told()
    assert told["seconds"] == [1000, 1001]
    first = {name: values[0] for name, values in told.items()}
    assert (first["queued_tokens"], first["output_tokens"], first["finished"], first["good"]) == (7, 20, 2, 1)
    assert (first["prompt_tokens"], first["cached_tokens"], first["usd"]) == (200, 80, 0.25)
    assert (first["refused"], first["failed"], first["bad_requests"]) == (2, 1, 2)
    assert {told[name][1] for name in ("finished", "refused", "failed", "usd", "output_tokens")} == {0}


def test_good_is_what_ended_well_and_in_time() -> None:
    cases = [
        (ticket(), 1),
        (ticket(ttft=2.1), 0),
        (ticket(gap=0.11), 0),
        (ticket(reason="error"), 0),
        (ticket(ttft=None), 1),
    ]
    for one, good in cases:
        history = ServerHistory()
        history.finished(one)
        history.close(1, {}, 0)
        assert history.told()["good"] == [good], one


def test_answers_in_one_piece_have_no_gaps_between_tokens() -> None:
    history = ServerHistory()
    history.finished(ticket(ttft=None, finished=1005.0))
    history.close(1, {}, 0)
    history.finished(ticket(gap=0.05))
    history.close(2, {}, 0)
    assert history.told()["itl_p50_ms"] == [None, pytest.approx(50, rel=0.13)]


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0.001, 100.0), max_size=4), min_size=1, max_size=24), st.integers(0, 24))
def test_quantiles_are_those_of_the_window_within_a_bucket_wherever_one_begins_to_ask(
    seconds: list[list[float]], since: int
) -> None:
    history = ServerHistory()
    for number, times in enumerate(seconds, 1):
        for time in times:
            history.finished(ticket(ttft=time))
        history.close(number, {}, 0)
    told = history.told(since)
    for number, p50, p95 in zip(told["seconds"], told["ttft_p50_ms"], told["ttft_p95_ms"], strict=True):
        window = sorted(time for times in seconds[max(number - WINDOW_SECONDS, 0) : number] for time in times)
        if not window:
            assert p50 is None
            assert p95 is None
            continue
        for share, found in ((0.5, p50), (0.95, p95)):
            rank = next(at for at in range(len(window)) if at + 1 >= share * len(window) - 1e-9)
            assert window[rank] * 1e3 * 0.999 <= found <= window[rank] * 1e3 * 1.126


def test_it_is_bounded_and_tells_only_what_is_new() -> None:
    history, steps = ServerHistory(kept=30), Iterations()
    for number in range(100):
        for _ in range(30):
            history.finished(ticket(ttft=random.Random(number).expovariate(1)))
        history.close(number, dict.fromkeys(LEVELS, 1), 1)
    assert len(history) == 30
    assert history.told(97)["seconds"] == [98, 99]
    assert {len(values) for values in history.told(97).values()} == {2}
    assert history.told(500)["seconds"] == []
    assert set(history.told(only_levels=True)) == {"seconds", *LEVELS}
    for _ in range(KEPT_ITERATIONS + 10):
        steps.add(1.0, 0.01, 3, 1, 50, 53)
    assert [row[0] for row in steps.since(KEPT_ITERATIONS + 7)] == [KEPT_ITERATIONS + at for at in (8, 9, 10)]
    assert len(steps.since(0)) == KEPT_ITERATIONS
    assert len(steps.since(0, 7)) == 7
