"""What answers say of a tenant's limits: OpenAI's headers, from the very counters that refuse."""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, Front, fleet, serving
from weighbridge.errors import RateLimited
from weighbridge.fleet.limits.rates import Rate, duration, rate_headers
from weighbridge.fleet.limits.remaining import UsedUp, retry_after, used_up
from weighbridge.fleet.limits.tenant import SLOTS, Limiter, SlidingWindow, TenantLimits

#: As OpenAI writes it: hours and minutes where there are any, and seconds; milliseconds below one.
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)|(\d+)ms")


def seconds_of(text: str) -> float:
    match = DURATION.fullmatch(text)
    assert match is not None, text
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9996, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.5, "1m30.5s"),
        (3600, "1h0m0s"),
        (86_400, "24h0m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_a_duration_is_never_too_short_nor_a_millisecond_too_long(seconds: float) -> None:
    assert seconds - 1e-5 <= seconds_of(duration(seconds)) <= seconds + 0.0011


def test_a_rate_that_waits_is_free_again() -> None:
    rate = Rate("tokens", 100, 70.0, 20.0)
    assert (rate.remaining, rate.after(19).remaining, rate.after(20).remaining) == (30, 30, 100)
    assert Rate("tokens", 100, 130.0, 5.0).remaining == 0
    assert rate_headers([rate]) == [
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"30"),
        (b"x-ratelimit-reset-tokens", b"20s"),
    ]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 30)), max_size=30), st.floats(0, 90))
def test_a_window_is_empty_when_it_says_so(amounts: list[tuple[int, float]], pause: float) -> None:
    window, now = SlidingWindow(60.0), 0.0
    for amount, gap in amounts:
        now += gap
        window.advance(now)
        window.add(amount, now)
    now += pause
    window.advance(now)
    wait = window.empty_in(now)
    assert (wait == 0.0) == (window.total == 0)
    assert wait <= 60.0 * (SLOTS + 1) / SLOTS
    window.advance(now + wait + 1e-6)
    assert window.total == 0


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 5)), min_size=1, max_size=40))
def test_what_remains_is_what_is_let_in(requests: list[tuple[int, float]]) -> None:
    limiter = Limiter(default=TenantLimits(tokens_per_minute=100, requests_per_minute=12))
    now = 0.0
    for number, (tokens, gap) in enumerate(requests):
        now += gap
        left = {rate.kind: rate.remaining for rate in limiter.rates("t", now)}
        fits = left["requests"] >= 1 and left["tokens"] >= tokens
        try:
            limiter.reserve("t", f"q{number}", tokens, 0.0, now)
        except RateLimited:
            assert not fits
            continue
        assert fits
        after = {rate.kind: rate.remaining for rate in limiter.rates("t", now)}
        assert after == {"requests": left["requests"] - 1, "tokens": left["tokens"] - tokens}
        limiter.settle(f"q{number}", tokens // 2, 0.0, now)


class Metered(Backend):
    """A provider that tells how much of its own account is left."""

    async def _bytes(self, send: Any, status: int, body: bytes) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-ratelimit-remaining-requests", b"7777"))
            await send(message)

        await super()._bytes(told, status, body)


LIMITS = "limits: {requests_per_minute: 3, tokens_per_minute: 5000}"
DOORS = {"gateway": "m", "route": "auto"}


async def rates(front: Front, door: str, **fields: Any) -> tuple[int, dict[str, str]]:
    async with front.post(model=DOORS[door], max_tokens=100, **fields) as answer:
        await answer.read()
        prefix = "x-ratelimit-"
        found = {n.lower().removeprefix(prefix): v for n, v in answer.headers.items() if prefix in n.lower()}
        return int(answer.status), found


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_and_refusals_say_what_is_left(door: str, stream: bool) -> None:
    async with serving(Metered()) as url:
        top = f"""{LIMITS}
health: {{interval: 0.05, slow_start: 0}}
models:
  m: {{replicas: [{{name: a, url: '{url}', dialect: weighbridge}}]}}
routes:
  auto: {{edge: {{model: m}}, cloud: {{url: 'http://127.0.0.1:9/v1', model: far}}}}
"""
        async with fleet(config=top) as front:
            left = []
            for _ in range(3):
                status, said = await rates(front, door, stream=stream)
                assert (status, said["limit-requests"], said["limit-tokens"]) == (200, "3", "5000")
                assert 0 < seconds_of(said["reset-requests"]) <= 61
                assert 0 < seconds_of(said["reset-tokens"]) <= 61
                left.append((int(said["remaining-requests"]), int(said["remaining-tokens"])))
                await front.idle()
            assert [one for one, _ in left] == [2, 1, 0]
            assert 5000 > left[0][1] > left[1][1] > left[2][1] > 4000
            status, said = await rates(front, door, stream=stream)
            assert (status, said["remaining-requests"]) == (429, "0")
            assert said["remaining-tokens"] == str(front.gateway.rates("default")[1].remaining)


async def test_a_tenant_without_limits_is_told_of_none_not_even_the_provider_s() -> None:
    async with fleet(Metered("a")) as front:
        assert await rates(front, "gateway") == (200, {})


async def test_only_limits_that_there_are_are_told() -> None:
    async with fleet(Backend("a"), top="limits: {tokens_per_minute: 5000}") as front:
        status, said = await rates(front, "gateway")
    assert status == 200
    assert set(said) == {"limit-tokens", "remaining-tokens", "reset-tokens"}


@pytest.mark.parametrize("ours", [-365 * 86_400.0, -86_400.0, 0.0, 86_400.0, 365 * 86_400.0])
def test_a_date_is_held_against_the_clock_of_whoever_wrote_it(ours: float) -> None:
    """A clock of ours that is wrong makes a gateway neither hammer a backend nor rest for an hour."""
    said_at = 1_790_000_000.0
    dated = {"date": formatdate(said_at, usegmt=True)}
    assert (
        retry_after({**dated, "retry-after": formatdate(said_at + 30.0, usegmt=True)}, said_at + ours) == 30.0
    )
    for reset in (str(int(said_at) + 30), str(int(said_at + 30) * 1000)):
        left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
        assert used_up({**dated, **left}, said_at + ours) == UsedUp("requests", 30.0)


@pytest.mark.parametrize("date", ["", "x", "Mon, 99 Foo 12026", "0" * 100_000])
def test_a_date_that_is_none_leaves_the_clock_of_our_own(date: str) -> None:
    now = 1_790_000_000.0
    headers = {"date": date, "retry-after": formatdate(now + 30.0, usegmt=True)}
    assert retry_after(headers, now) == 30.0
