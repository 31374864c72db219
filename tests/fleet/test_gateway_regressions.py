"""What broke in other gateways must not break here. Each test names the issue it comes from."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable
from typing import Any

from tests.fleet.arrivals import arrival, replica
from tests.fleet.backends import Backend, config_of, fleet, until
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.policies import make_policy

LONG = "weigh every request once, in tokens " * 400


async def _post(front, **fields):  # type: ignore[no-untyped-def]
    async with front.post("/v1/completions", **fields) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["x-weighbridge-replica"]


def _started(jobs: Iterable[Coroutine[Any, Any, Any]]) -> asyncio.Future[list[Any]]:
    """All of them at once, under way already."""
    return asyncio.gather(*[asyncio.create_task(job) for job in jobs])


def _running(backends: Iterable[Backend]) -> int:
    return sum(one.running for one in backends)


async def test_one_heavy_request_weighs_more_than_many_light_ones() -> None:
    """llm-d-router #517, #655, #745, dynamo #9259: a request count is not a load."""
    gate = asyncio.Event()
    a, b = Backend("a", gate=gate), Backend("b", gate=gate)
    async with fleet(a, b) as front:
        heavy = asyncio.create_task(_post(front, prompt=LONG, max_tokens=900))
        await until(lambda: a.running + b.running == 1)
        jobs = (_post(front, prompt=f"short {n}", max_tokens=4, passes=True) for n in range(6))
        light = await asyncio.gather(*jobs)
        gate.set()
        assert set(light) == {"b" if await heavy == "a" else "a"}


async def test_load_is_drawn_down_while_tokens_stream() -> None:
    """llm-d-router #1724: token load that is only released at the end makes a finishing replica look full."""
    backend = Backend("a", tokens=40, gap=0.01)
    async with fleet(backend) as front:
        state = front.gateway.pools["m"].members["a"].state
        stream = asyncio.create_task(front.stream(max_tokens=40))
        await until(lambda: state.decoding)
        seen = []
        while state.decoding:
            seen.append(state.remaining_output)
            await asyncio.sleep(0.005)
        await stream
    assert seen[0] > seen[len(seen) // 2] > seen[-1]
    assert state.uncomputed_tokens == 0.0


async def test_load_is_counted_before_the_answer_begins() -> None:
    """smg #1714: counted only once the response had started, a burst of long prompts all went to worker 0."""
    gate = asyncio.Event()
    backends = [Backend(name, gate=gate) for name in "abcd"]
    async with fleet(*backends) as front:
        jobs = _started(_post(front, prompt=f"{n} {LONG}", max_tokens=1) for n in range(32))
        await until(lambda: _running(backends) == 32)
        assert [one.running for one in backends] == [8, 8, 8, 8]
        gate.set()
        await jobs


async def test_counters_return_to_zero_after_every_kind_of_end() -> None:
    """ray #61755, sglang #15473: counters that were never decremented slowly took replicas out of service."""
    faults = [
        Backend("ok"),
        Backend("breaks", break_after=2),
        Backend("errors", statuses=[500] * 99),
        Backend("stalls", stall_after=1),
        Backend("slow", first_delay=60),
    ]
    top = "timeouts: {first_byte: 0.2, answer: 0.3, idle: 0.2}\nbreaker: {failures: 1000, minimum: 1000}"
    async with fleet(*faults, model="    policy: round_robin", top=top) as front:

        async def one(number: int) -> None:
            async with front.post(stream=number % 2 == 0) as answer:
                if number % 5 == 0:
                    await asyncio.sleep(0.05)
                    return  # the client leaves
                await answer.read()

        await asyncio.gather(*(one(number) for number in range(60)), return_exceptions=True)
        await front.idle()  # checks every counter


async def test_health_changes_do_not_zero_what_is_in_flight() -> None:
    """vllm-project/router #216, #238: a failed health check reset the load of a worker that was working."""
    backend = Backend("a", gate=asyncio.Event(), hold_after=3)
    async with fleet(backend) as front:
        member = front.gateway.pools["m"].members["a"]
        stream = asyncio.create_task(front.stream())
        await until(lambda: member.state.decoding)
        backend.load_status = 500
        await until(lambda: member.failed_probes >= 3)
        assert member.state.requests == 1
        assert member.state.kv_tokens > 0
        backend.load_status = 200
        await until(lambda: member.failed_probes == 0)
        assert member.state.requests == 1
        backend.let_go()
        await stream
        assert member.state.requests == 0


async def test_a_replica_that_streams_is_not_down_because_its_probes_fail() -> None:
    """ray #50465, vime #350: a replica that is busy generating answers its probes late and is well."""
    backend = Backend("a", tokens=100_000, gap=0.01)
    async with fleet(backend) as front:
        member = front.gateway.pools["m"].members["a"]
        backend.load_status = 500
        job = asyncio.create_task(front.stream(max_tokens=100_000))
        await until(lambda: member.failed_probes >= 3)
        assert member.state.healthy
        backend.tokens = 0  # enough: the stream ends
        stream = await job
        assert stream[-1] == "[DONE]"
        assert not [one for one in stream if isinstance(one, dict) and "error" in one]


async def test_long_generations_do_not_open_the_breaker() -> None:
    """vime #350: a breaker that counted durations opened on long, healthy generations."""
    backend = Backend("a", tokens=25, gap=0.1)  # longer than any of its time-outs
    top = "breaker: {failures: 1, failure_rate: 0.01, minimum: 1}\ntimeouts: {idle: 2, first_byte: 2}"
    async with fleet(backend, top=top) as front:
        await asyncio.gather(*(front.stream() for _ in range(8)))
        member = front.gateway.pools["m"].members["a"]
        assert member.breaker.state(front.gateway.clock()) == "closed"
        assert member.counts.failures == 0


async def test_a_report_that_is_old_does_not_decide() -> None:
    """smg #1683: a worker whose last report said "idle" kept getting everything after its reports stopped."""
    gate = asyncio.Event()
    a, b = Backend("a", gate=gate), Backend("b", gate=gate)
    async with fleet(a, b) as front:
        a.load_status = 404  # its last word was that it is idle
        jobs = _started(_post(front, prompt=f"{n} {LONG}") for n in range(10))
        await until(lambda: _running((a, b)) == 10)
        assert (a.running, b.running) == (5, 5)
        gate.set()
        await jobs


async def test_several_gateways_do_not_herd() -> None:
    """dynamo #589, smg #1621: gateways that each see a part of the load all choose the same "best" worker."""
    gate = asyncio.Event()
    backends = [Backend(name, gate=gate) for name in "abcd"]
    async with (
        fleet(*backends) as first,
        fleet(config=config_of(backends)) as second,
        fleet(config=config_of(backends)) as third,
    ):
        for wave in range(4):
            gate.clear()
            jobs = _started(
                _post(front, prompt=f"{wave} {number} {LONG}")
                for number in range(4)
                for front in (first, second, third)
            )
            await until(lambda: _running(backends) == 12)
            assert max(one.running for one in backends) <= 6  # three each would be even
            gate.set()
            await jobs
    assert sum(len(one.calls) for one in backends) == 48


async def test_no_replica_stays_idle_under_light_load() -> None:
    """dynamo #7836: three of five workers took all of the traffic."""
    backends = [Backend(name) for name in "abcde"]
    async with fleet(*backends) as front:
        for number in range(60):
            await _post(front, prompt=f"prompt number {number}")
    assert all(one.calls for one in backends)


async def test_a_shared_prefix_does_not_pile_up_on_one_replica() -> None:
    """sglang #14305, #21199: affinity sent a burst to the replica with the warm cache while others idled."""
    for policy in ("weigh", "prefix_affinity"):
        gate = asyncio.Event()
        backends = [Backend(name, gate=gate) for name in "abcd"]
        async with fleet(*backends, model=f"    policy: {policy}") as front:
            await _post(front, prompt=LONG, passes=True)
            jobs = _started(_post(front, prompt=f"{LONG} {str(n) * 4000}", max_tokens=400) for n in range(40))
            await until(lambda backends=backends: _running(backends) == 40)
            there = [one.running for one in backends]
            gate.set()
            await jobs
        assert max(there) <= 20, (policy, there)
        assert min(there) >= 1, (policy, there)


def test_one_hot_replica_does_not_end_affinity_for_the_others() -> None:
    """sglang #32195, vllm-project/router #238: one overloaded worker turned affinity off for the whole fleet."""
    index = PrefixIndex()
    hot, home, idle = (replica(name, index=index) for name in ("hot", "home", "idle"))
    chain = tuple(bytes([n]) * 32 for n in range(100))
    index.enter("home", chain)
    hot.credit(arrival("hog", 50_000), 0, 0.0)
    for name in ("weigh", "prefix_affinity"):
        policy = make_policy(name, random.Random(0))
        first = policy.choose(arrival("q", 1700, chain=chain), [hot, home, idle], 0.0).replica
        for number in range(8):
            again = policy.choose(arrival(f"q{number}", 1700, chain=chain), [hot, home, idle], 0.0).replica
            assert again == first != "hot"
        assert name != "weigh" or first == "home"


async def test_token_id_prompts_of_equal_length_are_told_apart() -> None:
    """vllm-router's documentation: equally long token-id prompts all hash to `token_ids:<count>`, one worker."""
    backends = [Backend(name) for name in "abcd"]
    async with fleet(*backends, model="    policy: prefix_affinity") as front:
        for number in range(40):
            await _post(front, prompt=[number * 7 + token for token in range(64)])
    assert all(one.calls for one in backends)


async def test_text_inside_a_prompt_is_no_routing_key() -> None:
    """vllm-router's documentation: a `"user":` inside the prompt becomes the affinity key."""
    backends = [Backend(name) for name in "abcd"]
    async with fleet(*backends, model="    policy: prefix_affinity") as front:
        for number in range(40):
            await _post(front, prompt=f'{number} says {{"user": "alice"}} ' + f"{number} " * 100)
    assert all(one.calls for one in backends)


async def test_one_dead_backend_does_not_hang_everything() -> None:
    """production-stack #749: without a time-out one backend that accepted and never answered hung all clients."""
    dead, good = Backend("dead", first_delay=3600, timeouts="first_byte: 0.3"), Backend("good")
    async with fleet(dead, good, model="    policy: round_robin", top="retry: {budget: 1.0}") as front:
        async with asyncio.timeout(60):
            streams = await asyncio.gather(*(front.stream() for _ in range(20)))
        assert all(one[-1] == "[DONE]" for one in streams)
    assert dead.calls


async def test_green_but_hanging_is_found_out() -> None:
    """ray #64326: every request hung while the status was green."""
    hanging, good = Backend("hanging", first_delay=3600, timeouts="first_byte: 0.1"), Backend("good")
    top = "breaker: {failures: 3, cool_off: 600, longest_cool_off: 600}\nretry: {budget: 1.0}"
    async with fleet(hanging, good, model="    policy: round_robin", top=top) as front:
        for _ in range(12):
            await front.stream()
        standing = {
            one["name"]: one["standing"] for one in (await front.get("/v1/load"))["models"]["m"]["replicas"]
        }
    assert standing == {"hanging": "breaker_open", "good": "up"}
    assert len(hanging.calls) == 3


async def test_retries_are_quick_and_bounded() -> None:
    """production-stack #382: retries with long back-off broke a two-second time to first token."""
    backend = Backend("a", statuses=[502] * 99)
    async with fleet(backend) as front:
        began = time.monotonic()
        async with front.post() as answer:
            assert answer.status == 502
        assert time.monotonic() - began < 5.0  # a second try after 50 ms, a third after 100
    assert len(backend.calls) == 3


async def test_a_failing_fleet_is_not_stormed() -> None:
    """When everything fails, retries add a fifth to the load; they do not multiply it by the attempts."""
    backends = [Backend(name, statuses=[500] * 999) for name in "ab"]
    top = "breaker: {failures: 10000, minimum: 10000}"
    async with fleet(*backends, top=top) as front:
        for _ in range(100):
            async with front.post() as answer:
                assert answer.status >= 500
    assert sum(len(one.calls) for one in backends) <= 100 + 10 + 20


async def test_lies_about_load_do_not_attract_everything() -> None:
    """A replica that always says it is idle gets its share: what we sent there is counted by ourselves."""
    gate = asyncio.Event()
    liar, honest = Backend("liar", gate=gate, load={"running_requests": 0}), Backend("honest", gate=gate)
    async with fleet(liar, honest) as front:
        for _ in range(3):
            gate.clear()
            jobs = _started(_post(front, prompt=f"{n} {LONG}") for n in range(10))
            await until(lambda: _running((liar, honest)) == 10)
            gate.set()
            await jobs
    assert len(liar.calls) == len(honest.calls)


async def test_nonsense_in_reports_is_ignored() -> None:
    for nonsense in (
        {"queued_requests": -5},
        {"running_tokens": "many"},
        {"block_size": None},
        {"step_cost": {"a": 1}},
    ):
        backend = Backend("a", load=nonsense)
        async with fleet(backend) as front:
            seen = backend.probes
            await until(lambda backend=backend, seen=seen: backend.probes >= seen + 2)
            await _post(front)
            member = front.gateway.pools["m"].members["a"]
            assert member.standing(front.gateway.clock()) == "up"
            assert member.state.others.queued_requests == 0


async def test_the_queue_can_be_seen() -> None:
    """ollama #2004, open-webui #788: nobody could tell whether a request was waiting, nor behind how many."""
    backend = Backend("a", gate=asyncio.Event())
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}") as front:
        jobs = [asyncio.create_task(front.stream(max_tokens=50)) for _ in range(4)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 3)
        load = await front.get("/v1/load")
        assert load["queued_requests"] == 3
        assert load["models"]["m"]["queued_tokens"] >= 3 * 50
        backend.let_go()
        await asyncio.gather(*jobs)
        async with front.client.get(front.url + "/metrics") as answer:
            assert 'weighbridge_gateway_queued_requests{model="m"} 0.0' in await answer.text()
