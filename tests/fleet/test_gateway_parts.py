"""The pure parts of the gateway: framing, counting, breaker, budgets, quantiles, dialects, cores."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.fleet.limits.remaining import retry_after
from weighbridge.fleet.load.dialects import DIALECTS, dialect, read_report
from weighbridge.fleet.meter import Meter
from weighbridge.fleet.reliability.breaker import BreakerSettings, BreakerState, CircuitBreaker
from weighbridge.fleet.reliability.hedge import Hedger, HedgeSettings, SlidingQuantile
from weighbridge.fleet.reliability.retry import EarnedBudget, backoff, may_retry
from weighbridge.fleet.replicas.process import share_cores
from weighbridge.wire.sse import LARGEST_EVENT, EventFramer, EventTooLong

EVENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'


@given(st.lists(st.integers(1, 40), max_size=30), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_events_are_cut_whole_wherever_the_network_cuts(sizes: list[int], gap: bytes) -> None:
    stream = b"".join(b"data: %d" % n + gap for n in range(12)) + b"data: [DONE]"
    framer, out, at = EventFramer(), [], 0
    for size in [*sizes, len(stream)]:
        piece, at = stream[at : at + size], at + size
        out.append(framer.feed(piece))
    assert all(one.endswith(gap) for one in out if one)
    assert b"".join(out) + framer.flush() == stream


def test_an_event_without_end_does_not_fill_the_memory() -> None:
    framer = EventFramer()
    for _ in range(LARGEST_EVENT // (1 << 20)):
        framer.feed(b"x" * (1 << 20))
    with pytest.raises(EventTooLong, match="16 MiB"):
        framer.feed(b"x")


def test_a_long_event_costs_the_same_in_however_many_pieces_it_comes() -> None:
    """Looked at from its start with every piece, a long event kept everybody waiting for minutes."""
    framer = EventFramer()
    framer.feed(b"x" * (LARGEST_EVENT - 100_000))
    began = time.thread_time()
    for _ in range(20_000):
        framer.feed(b"y")
    assert time.thread_time() - began < 2.0
    assert framer.feed(b"\n\n").endswith(b"y\n\n")


@given(st.lists(st.integers(1, 3), min_size=1, max_size=20), st.booleans(), st.booleans())
def test_a_meter_counts_events_and_hides_usage(groups: list[int], hide: bool, spaces: bool) -> None:
    colon = b": " if spaces else b":"
    usage = b'data: {"choices":[],"usage"' + colon + b'{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    last = b'data: {"choices":[{"finish_reason"' + colon + b'"stop"}]}\n\n'
    meter = Meter(hide_usage=hide)
    out = []
    for chunk in [EVENT * n for n in groups] + [b": still here\n\n", last + usage + b"data: [DONE]\n\n"]:
        meter.count(chunk)
        out.append(meter.strip(chunk))
    passed = b"".join(out)
    assert passed.count(EVENT) == sum(groups)
    assert (usage in passed) is not hide
    assert passed.endswith(b"data: [DONE]\n\n")
    assert meter.usage is not None
    assert (meter.usage.prompt_tokens, meter.usage.output_tokens) == (7, 3)
    assert (meter.finish, meter.done, meter.complete) == ("stop", True, True)
    assert sum(groups) <= meter.produced <= sum(groups) + 2


def test_usage_on_an_event_with_text_stays() -> None:
    meter = Meter(hide_usage=True)
    event = b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    assert meter.strip(event) == event
    assert meter.usage is not None
    text = b'data: {"choices":[{"text":"the \\"usage\\": {} of words"}]}\n\n'
    assert meter.strip(text) == text


@pytest.mark.parametrize("space", [b"", b" "])
@pytest.mark.parametrize(
    "name",
    [
        b"cached_tokens",
        b"tokens_cached",
        b"prompt_cache_hit_tokens",
        b"cache_read_input_tokens",
        b"cache_n",
        b"cachedContentTokenCount",
        b"cacheReadInputTokens",
        b"cacheReadInputTokenCount",
        b"cached_content_token_count",
        b"cachedInputTokens",
        b"cache_read",
    ],
)
def test_a_meter_shows_no_cached_tokens_where_they_may_be_anothers(name: bytes, space: bytes) -> None:
    meter = Meter(hide_usage=False)
    meter.hide_cached = True
    said = b'data: {"choices":[{"text":"\\"%s\\":7 %s: 7"}],' % (name, name)
    told = b'"usage":{"prompt_tokens":9,"completion_tokens":3,"details":{"%s":%s%s,"x":7}}}\n\n'
    assert meter.strip(said + told % (name, space, b"7")) == said + told % (name, space, b"0")
    assert meter.strip(said + told % (name, space, b'"7"')) == said + told % (name, space, b"0")
    meter.hide_cached = False
    assert meter.strip(said + told % (name, space, b"7")) == said + told % (name, space, b"7")


def test_a_stream_with_an_error_event_is_over() -> None:
    meter = Meter(hide_usage=False)
    meter.count(b'data: {"error": {"message": "out of memory"}}\n\n')
    assert meter.failed


# -- breaker -----------------------------------------------------------------------------------------------

QUICK = BreakerSettings(failures=3, minimum=10, window=30.0, cool_off=1.0, longest_cool_off=8.0)


def test_the_breaker_opens_tries_once_and_closes() -> None:
    breaker = CircuitBreaker(QUICK)
    for _ in range(3):
        assert breaker.allows(0.0)
        breaker.failed(0.0)
    assert breaker.state(0.5) is BreakerState.OPEN
    assert not breaker.allows(0.5)
    assert breaker.allows(1.0)
    breaker.sent(1.0)
    assert not breaker.allows(1.0)  # one on trial is enough
    breaker.failed(1.1)
    assert breaker.state(3.0) is BreakerState.OPEN  # two seconds now
    breaker.sent(3.2)
    breaker.succeeded(3.3)
    assert breaker.state(3.3) is BreakerState.CLOSED


def test_a_trial_that_is_cancelled_or_lost_frees_its_place() -> None:
    breaker = CircuitBreaker(QUICK)
    for _ in range(3):
        breaker.failed(0.0)
    breaker.sent(1.0)
    breaker.gave_up()
    assert breaker.allows(1.1)
    breaker.sent(1.1)
    assert not breaker.allows(2.0)
    assert breaker.allows(1.1 + QUICK.longest_cool_off + 0.1)


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from("fsgx")), max_size=200))
def test_the_breaker_never_locks_out_for_longer_than_its_longest_pause(
    steps: list[tuple[float, str]],
) -> None:
    breaker, now = CircuitBreaker(QUICK), 0.0
    for pause, what in steps:
        now += pause
        if what == "f":
            breaker.failed(now)
        elif what == "s":
            breaker.succeeded(now)
        elif what == "g":
            breaker.gave_up()
        elif breaker.allows(now):
            breaker.sent(now)
    assert breaker.allows(now + 2 * QUICK.longest_cool_off + 0.01)


def test_many_failures_among_successes_open_it_too() -> None:
    breaker = CircuitBreaker(QUICK)
    for index in range(20):
        (breaker.succeeded if index % 3 == 0 else breaker.failed)(float(index) / 10)
    assert breaker.state(2.0) is not BreakerState.CLOSED


# -- retries and hedges ------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=300))
def test_a_budget_never_spends_more_than_its_share(steps: list[bool]) -> None:
    budget, sent, again = EarnedBudget(0.2, 10.0, 10.0), 0, 0
    for spend in steps:
        if spend:
            again += budget.spend()
        else:
            budget.earn()
            sent += 1
    assert again <= 10 + 0.2 * sent + 1e-9


def test_what_may_be_retried() -> None:
    assert all(may_retry(status, 2, False) for status in (429, 502, 503, 504, 401, 403))
    assert may_retry(500, 1, False)
    assert not may_retry(500, 2, False)
    assert not may_retry(504, 1, True)
    assert not any(may_retry(status, 1, False) for status in (400, 404, 413, 422))


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "7"}, 0.0) == 7.0
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 20.0) == 40.0
    assert retry_after({"retry-after": "-3"}, 0.0) == 0.0
    assert retry_after({"retry-after": "1e99"}, 0.0) == 3600.0
    assert retry_after({"retry-after": "nan"}, 0.0) is None
    assert retry_after({"retry-after": "later"}, 0.0) is None
    assert retry_after({}, 0.0) is None


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("1800000004", 4.0),  # a time of the epoch
        ("2s", 2.0),
        ("20ms", 0.02),
        ("5, 7", 7.0),  # two lines of that name
        ("Fri, 15 Jan 2027 08:00:04 GMT", 4.0),
        ("Fri, 15 Jan 2027 09:00:04 +0100", 4.0),
        ("Friday, 15-Jan-27 08:00:04 GMT", 4.0),
        ("Fri Jan 15 08:00:04 2027", 4.0),
        ("2027-01-15T08:00:04Z", 4.0),
        ("Mon, 01 Jan 12026 00:00:00 GMT", None),
        ("Fri, 15 Jan", None),
    ],
)
def test_retry_after_in_what_other_forms_servers_send(given: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": given}, 1_800_000_000.0) == seconds


def test_of_both_retry_headers_the_milliseconds_count_where_they_are_a_number() -> None:
    assert retry_after({"retry-after": "2", "retry-after-ms": "1500"}, 0.0) == 1.5
    assert retry_after({"retry-after": "5", "retry-after-ms": "soon"}, 0.0) == 5.0
    assert retry_after({"retry-after": "2", "x-ms-retry-after-ms": "1500"}, 0.0) == 1.5


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{3,6} \d\d:\d\d:\d\d GMT"))
def test_whatever_a_server_sends_as_a_rest_is_a_rest_or_none(text: str) -> None:
    found = retry_after({"retry-after": text}, 1.8e9)
    assert found is None or 0.0 <= found <= 3600.0


def test_backoff_is_short() -> None:
    """production-stack #382: a long back-off breaks a two-second time to first token."""
    assert sum(backoff(attempt, 0.999) for attempt in range(1, 5)) < 0.6


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=100), st.floats(0.01, 0.99))
def test_the_sliding_quantile_is_that_of_the_last_observations(values: list[float], q: float) -> None:
    sliding = SlidingQuantile(size=16)
    for value in values:
        sliding.observe(value)
    last = sorted(values[-16:])
    got = sliding.quantile(q)
    assert got in last
    assert sum(one <= got for one in last) >= q * len(last)
    assert sum(one < got for one in last) <= q * len(last)


def test_a_hedger_waits_until_it_has_learned() -> None:
    hedger = Hedger(HedgeSettings(enabled=True, minimum_samples=10, quantile=0.9, minimum_delay=0.0))
    assert hedger.delay(1.0) is None
    for index in range(10):
        hedger.observe(0.1 * (index + 1), predicted=0.1)  # 1 to 10 times what was predicted
    assert hedger.delay(0.2) == pytest.approx(9 * 0.2)
    assert Hedger(HedgeSettings()).delay(1.0) is None


def test_first_tokens_that_nothing_predicted_are_not_mixed_with_ratios() -> None:
    hedger = Hedger(HedgeSettings(enabled=True, minimum_samples=10, quantile=0.9, minimum_delay=0.0))
    for index in range(10):
        hedger.observe(3.0 + index, predicted=None)
    assert hedger.delay(0.2) is None  # nothing is learned yet of those that predict
    assert hedger.delay(None) == pytest.approx(11.0)
    for _ in range(10):
        hedger.observe(0.2, predicted=0.1)
    assert hedger.delay(0.2) == pytest.approx(0.4)
    assert hedger.delay(None) == pytest.approx(11.0)


# -- dialects ----------------------------------------------------------------------------------------------

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m"} 4.0
sglang:num_queue_reqs{model_name="m"} 1.0
sglang:num_used_tokens{model_name="m"} 500.0
sglang:token_usage{model_name="m"} 0.5
"""
LLAMA = b"""llamacpp:requests_processing 1
llamacpp:requests_deferred 6
"""


def test_dialects_read_what_their_servers_tell() -> None:
    vllm = read_report(dialect("vllm"), VLLM, 5.0)
    assert (vllm.at, vllm.running_requests, vllm.queued_requests) == (5.0, 3, 2)
    assert (vllm.kv_tokens_used, vllm.kv_tokens_total) == (4000, 16000)
    two_ranks = VLLM + VLLM.replace(b'engine="0"', b'engine="1"')
    both = read_report(dialect("vllm"), two_ranks, 0.0)
    assert (both.running_requests, both.kv_tokens_used, both.kv_tokens_total) == (6, 8000, 32000)
    sglang = read_report(dialect("sglang"), SGLANG, 0.0)
    assert (sglang.running_requests, sglang.queued_requests) == (4, 1)
    assert (sglang.kv_tokens_used, sglang.kv_tokens_total) == (500, 1000)
    llama = read_report(dialect("llama-server"), LLAMA, 0.0)
    assert (llama.running_requests, llama.queued_requests, llama.kv_tokens_total) == (1, 6, None)
    assert read_report(dialect("ollama"), b'{"models": []}', 0.0).running_requests == 0


@pytest.mark.parametrize("name", ["weighbridge", "vllm", "sglang", "llama-server"])
@pytest.mark.parametrize(
    "page", [b"", b"{}", b"[]", b"\xff\xfe", b"<html>", b"vllm:num_requests_running NaN", b"[" * 100_000]
)
def test_pages_that_make_no_sense_are_refused(name: str, page: bytes) -> None:
    with pytest.raises(ValueError):
        read_report(DIALECTS[name], page, 0.0)


LOAD: dict[str, Any] = {
    "queued_requests": 0,
    "running_requests": 1,
    "queued_tokens": 0,
    "running_tokens": 0,
    "kv_blocks_total": 1,
    "kv_blocks_used": 1,
    "block_size": 16,
}
COST = dict.fromkeys(("overhead", "memory", "per_token", "per_context_token", "per_sequence"), 1e-4)
EXPERTS = {"per_expert": 1e-6, "expert_layers": 1.0, "expert_top_k": 2.0}


@pytest.mark.parametrize(
    "lie",
    [
        {"block_size": 1e308},
        {"block_size": -1},
        {"block_size": 1 << 62, "kv_blocks_total": 1 << 62},
        {"queued_tokens": 1 << 60},
        {"max_model_len": 1 << 60},
        {"step_cost": {**COST, "per_token": 1e308}},
        {"step_cost": {**COST, "per_token": 1e-320, "per_prompt_pair": 1.0}},
        {"step_cost": {**COST, **EXPERTS, "experts": 1e8}},
        {"step_cost": {**COST, "overhead": "inf"}},
    ],
    ids=lambda lie: str(lie)[:40],
)
def test_numbers_beyond_all_reason_are_not_reckoned_with(lie: dict[str, Any]) -> None:
    honest = {**LOAD, "step_cost": {**COST, **EXPERTS, "experts": 64.0}}
    assert read_report(dialect("weighbridge"), json.dumps(honest).encode(), 0.0).step_cost is not None
    with pytest.raises(ValueError, match=r"step_cost|negative|server answers"):
        read_report(dialect("weighbridge"), json.dumps({**LOAD, **lie}).encode(), 0.0)


@given(st.binary(max_size=200))
def test_no_page_can_raise_anything_else(page: bytes) -> None:
    for one in DIALECTS.values():
        try:
            report = read_report(one, page, 0.0)
        except ValueError:
            continue
        assert report.running_requests >= 0
        assert report.queued_requests >= 0


# -- cores -------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12))
def test_cores_are_shared_out_evenly(replicas: int, cores: int) -> None:
    shares = share_cores(replicas, list(range(cores)))
    assert len(shares) == replicas
    assert set().union(*shares) == set(range(min(cores, max(replicas, cores))))
    sizes = [len(one) for one in shares]
    assert max(sizes) - min(sizes) <= 1
    if replicas <= cores:
        assert sum(sizes) == cores
    assert math.prod(sizes) >= 1


_EVENTS = st.sampled_from(
    [
        b'data: {"choices":[{"index":0,"text":" word","finish_reason":null}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"tool_calls":[{}]},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"text":"ab","logprobs":{"tokens":["a","b"]}}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
        b'data: {"error":{"message":"no"}}\n\n',
        b"data: [DONE]\n\n",
        b"data: no json\n\n",
        b": keep-alive\n\n",
        b'data:{"choices":[{"text":"a"}]}\n\n',
        b'event: x\ndata: {"choices":[{"text":"a"}]}\n\n',
        b'data: {"choices":\ndata: [{"text":"a"}]}\n\n',
        b'data: {"choices":[{"text":"a"}]},{"choices":[{"text":"b"}]}\n\n',
        b'data: {"choices":[{"text":"[DONE]\\n\\ndata: "}]}\n\n',
    ]
)


@given(st.lists(_EVENTS, min_size=1, max_size=6))
def test_events_that_come_together_count_as_they_do_one_by_one(events: list[bytes]) -> None:
    apart, together = Meter(hide_usage=False), Meter(hide_usage=False)
    counts = [apart.count(event) for event in events]
    assert together.count(b"".join(events)) == sum(counts) or b": keep-alive\n\n" in events
    assert (together.produced, together.finish, together.done, together.failed) == (
        apart.produced,
        apart.finish,
        apart.done,
        apart.failed,
    )
