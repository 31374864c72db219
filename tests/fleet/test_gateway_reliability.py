"""Replicas fail in every way they can; clients get an answer, or a clear error, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from tests.fleet.backends import Backend, config_of, events, fleet, text_of, until
from tests.server.running import free_port
from weighbridge.fleet.desk import Patience


async def test_an_unreachable_replica_is_passed_over() -> None:
    good = Backend("good")
    config = config_of([Backend("gone", url=f"http://127.0.0.1:{free_port()}"), good])
    async with fleet(good, wait=False) as front:
        await _joined(front, config.splitlines()[-2])
        for _ in range(4):
            async with front.post() as answer:
                assert answer.status == 200
                assert answer.headers["x-weighbridge-replica"] == "good"


async def _joined(front, line):  # type: ignore[no-untyped-def]
    import yaml

    from weighbridge.fleet.config.replica import replica_from_json

    pool = front.gateway.pools["m"]
    pool.add(replica_from_json(yaml.safe_load(line)[0], "x"))
    await until(lambda: front.gateway.ready)


async def test_an_error_before_the_first_byte_is_retried_elsewhere() -> None:
    for status in (500, 502, 503, 429):
        first, second = Backend("a", statuses=[status] * 9), Backend("b", statuses=[])
        async with fleet(first, second, model="    policy: round_robin") as front:
            for _ in range(2):
                async with front.post() as answer:
                    assert answer.status == 200, status
                    assert answer.headers["x-weighbridge-replica"] == "b"
            tickets = (await front.get("/v1/tickets"))["data"]
        assert any(f"status {status}" in line for one in tickets for line in one["decisions"])
        assert len(first.calls) <= 2
        assert len(second.calls) == 2


async def test_an_error_as_first_event_is_retried_too() -> None:
    async with fleet(
        Backend("a", error_in_stream=True), Backend("b"), model="    policy: round_robin"
    ) as front:
        assert text_of(await front.stream()) == " t0 t1 t2 t3 t4"


async def test_the_clients_own_errors_are_passed_on_at_once() -> None:
    first, second = Backend("a", statuses=[422]), Backend("b", statuses=[422])
    async with fleet(first, second) as front, front.post() as answer:
        assert answer.status == 422
        assert "a 422 from" in (await answer.json())["error"]["message"]
    assert len(first.calls) + len(second.calls) == 1


async def test_a_redirect_is_a_wrong_configuration() -> None:
    async with fleet(Backend("a", statuses=[307] * 9)) as front:
        for stream in (True, False):
            async with front.post(stream=stream) as answer:
                assert answer.status == 502
                assert "write that URL into the configuration" in (await answer.json())["error"]["message"]


async def test_retry_after_is_honoured_with_one_replica() -> None:
    backend = Backend("a", statuses=[429], retry_after="1")
    async with fleet(backend) as front:
        began = time.monotonic()
        async with front.post() as answer:
            assert answer.status == 200
        assert 0.9 < time.monotonic() - began < 30.0


async def test_a_long_retry_after_goes_to_the_client() -> None:
    backend = Backend("a", statuses=[429, 429], retry_after="120")
    async with fleet(backend) as front:
        async with front.post() as answer:
            assert answer.status == 429
            assert answer.headers["retry-after"] == "120"
            assert "a 429 from a" in (await answer.json())["error"]["message"]
        async with front.post() as answer:  # it is not asked again before
            assert answer.status == 429
            assert 100 < int(answer.headers["retry-after"]) <= 120
    assert len(backend.calls) == 1


async def test_all_fail_and_the_client_hears_what_happened() -> None:
    a, b = Backend("a", break_after=0), Backend("b", break_after=0)
    async with fleet(a, b) as front, front.post(stream=True) as answer:
        assert answer.status == 502
        message = (await answer.json())["error"]["message"]
    assert "a:" in message
    assert "b:" in message


async def test_a_first_byte_that_does_not_come_is_a_time_out() -> None:
    slow, good = Backend("slow", first_delay=3600, timeouts="first_byte: 0.3"), Backend("good")
    async with fleet(slow, good, model="    policy: round_robin") as front:
        async with asyncio.timeout(60):
            assert text_of(await front.stream()) == " t0 t1 t2 t3 t4"
        await _cancelled(slow, 1)


async def _cancelled(backend: Backend, count: int) -> None:
    await until(lambda: backend.cancelled >= count and not backend.running)


async def test_comments_are_no_first_byte() -> None:
    waiting, good = Backend("w", comments_only=True, timeouts="first_byte: 0.3"), Backend("good")
    async with fleet(waiting, good, model="    policy: round_robin") as front:
        assert text_of(await front.stream()) == " t0 t1 t2 t3 t4"


async def test_a_begun_stream_that_breaks_ends_with_an_error_event() -> None:
    for fault in ({"break_after": 2}, {"stall_after": 2}, {"end_early_after": 2}):
        backend = Backend("a", **fault)  # type: ignore[arg-type]
        async with fleet(backend, Backend("b", statuses=[500] * 99), top="timeouts: {idle: 2}") as front:
            front.gateway.pools["m"].drain("b")
            async with front.post(stream=True) as answer:
                assert answer.status == 200
                stream = events(await answer.read())
            await front.idle()
            [ticket] = (await front.get("/v1/tickets"))["data"]
        assert text_of(stream) == " t0 t1"
        assert stream[-1]["error"]["code"] == "replica_lost", fault
        assert "resume" in stream[-1]["error"]["message"] or "broke off" in stream[-1]["error"]["message"]
        assert ticket["finish_reason"] == "error"
        assert ticket["error"]


async def test_a_stream_without_end_is_cut() -> None:
    backend = Backend("a", endless=True, gap=0.0005)
    async with fleet(backend) as front:
        async with asyncio.timeout(60):
            stream = await front.stream(max_tokens=20)
        assert "does not end" in stream[-1]["error"]["message"]
        await _cancelled(backend, 1)


async def test_a_client_that_goes_away_cancels_upstream() -> None:
    for streaming in (True, False):
        backend = Backend("a", tokens=1000, gap=0.2)
        async with fleet(backend) as front:
            state = front.gateway.pools["m"].members["a"].state
            async with aiohttp.ClientSession() as client:
                request = client.post(
                    front.url + "/v1/completions", json={"model": "m", "prompt": "x", "stream": streaming}
                )
                task = asyncio.create_task(_read(request))
                await until(lambda backend=backend: backend.running)
                await until(lambda state=state, streaming=streaming: state.decoding or not streaming)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await _cancelled(backend, 1)  # it would have gone on for 200 s
            await front.idle()
            [ticket] = (await front.get("/v1/tickets"))["data"]
            assert ticket["finish_reason"] == "abort"


async def _read(request) -> bytes:  # type: ignore[no-untyped-def]
    async with request as answer:
        return await answer.read()


async def test_a_client_that_goes_away_leaves_the_queue() -> None:
    backend = Backend("a", gate=asyncio.Event())
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}") as front:
        queue = front.gateway.pools["m"].dispatcher.queue
        first = asyncio.create_task(front.stream())
        await until(lambda: backend.running)
        async with aiohttp.ClientSession() as client:
            second = asyncio.create_task(
                _read(client.post(front.url + "/v1/completions", json={"prompt": "x"}))
            )
            await until(lambda: len(queue))
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
        await until(lambda: not len(queue))
        backend.let_go()
        await first
    assert len(backend.calls) == 1


async def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    backend = Backend("a", tokens=10, gate=asyncio.Event())
    top = "queue: {max_requests: 2}"
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}", top=top) as front:
        running = [asyncio.create_task(front.stream()) for _ in range(3)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 2)
        async with front.post() as answer:
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert (await answer.json())["error"]["code"] == "queue_full"
        backend.let_go()
        assert [text_of(one)[-3:] for one in await asyncio.gather(*running)] == [" t9"] * 3
    assert backend.peak == 1


async def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    backend = Backend("a", gate=asyncio.Event())
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}") as front:
        first = asyncio.create_task(front.stream())
        await until(lambda: backend.running)
        async with front.post(weighbridge={"deadline_ms": 200}) as answer:
            assert answer.status == 504
            assert (await answer.json())["error"]["code"] == "deadline_missed"
        assert not first.done()  # it was not waited for
        backend.let_go()
        await first
    assert len(backend.calls) == 1


async def test_no_replica_up_is_said_soon() -> None:
    config = config_of([Backend("gone", url=f"http://127.0.0.1:{free_port()}")])
    async with fleet(config=config, wait=False) as front:
        front.gateway.pools["m"].dispatcher.desk.patience = Patience(for_any=0.3)
        front.gateway.pools["m"].members["gone"].heard = True  # it was there once
        async with asyncio.timeout(60):
            async with front.post() as answer:
                assert answer.status == 503
                message = (await answer.json())["error"]["message"]
        assert "no replica of 'm' is up" in message
        assert "out of reach" in message
        async with front.client.get(front.url + "/health") as answer:
            assert answer.status == 503


async def test_a_replica_that_refuses_our_key_is_left_alone() -> None:
    good, expired = Backend("good"), Backend("expired", key="new")
    async with fleet(expired, good, model="    policy: round_robin") as front:
        for _ in range(4):
            async with front.post() as answer:
                assert answer.status == 200
        load = await front.get("/v1/load")
        standing = {one["name"]: (one["standing"], one["why"]) for one in load["models"]["m"]["replicas"]}
    assert len(expired.calls) == 1
    assert standing["expired"][0] == "held"
    assert "refuses the key" in standing["expired"][1]
    assert "the key expired" in standing["expired"][1]


async def test_only_a_replica_that_refuses_our_key_is_a_bad_gateway() -> None:
    async with fleet(Backend("a", key="new"), top="retry: {attempts: 1}") as front, front.post() as answer:
        assert answer.status == 502  # 401 would tell the client that its own key is wrong
        assert "refuses the key" in (await answer.json())["error"]["message"]


async def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    a, b = Backend("a", tokens=20, gap=0.01), Backend("b")
    async with fleet(a, b, model="    policy: round_robin") as front:
        running = asyncio.create_task(front.stream())
        await until(lambda: a.running)
        pool = front.gateway.pools["m"]
        removal = asyncio.create_task(pool.remove("a", 60.0))
        for _ in range(3):
            async with front.post() as answer:
                assert answer.headers["x-weighbridge-replica"] == "b"
        assert len(events_text := text_of(await running))
        assert events_text.endswith(" t19")
        assert await removal is True
        assert list(pool.members) == ["b"]


async def test_the_gateway_drains() -> None:
    backend = Backend("a", tokens=20, gap=0.01)
    async with fleet(backend) as front:
        running = asyncio.create_task(front.stream())
        await until(lambda: backend.running)
        draining = asyncio.create_task(front.gateway.drain(60.0))
        await asyncio.sleep(0)
        async with front.post() as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "draining"
        assert text_of(await running).endswith(" t19")
        assert await draining is True


class Freezes(Backend):
    """Answers nothing any more once it is told to, as one that was stopped: not its probes either."""

    frozen = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.frozen:
            await asyncio.sleep(3600)
        await super().__call__(scope, receive, send)


async def test_who_waits_for_a_first_byte_of_one_that_stands_still_is_served_elsewhere() -> None:
    """Long before the time that a first byte may take: its probes are not answered either."""
    stopped = Freezes("stopped", timeouts="probe: 0.1", gate=asyncio.Event())
    other = Backend("other")
    async with fleet(stopped, other, model="    policy: round_robin") as front:

        async def one() -> str:
            async with front.post(stream=True) as answer:
                assert answer.status == 200
                await answer.read()
                return str(answer.headers["x-weighbridge-replica"])

        waiting = [asyncio.create_task(one()) for _ in range(2)]
        await until(lambda: stopped.running == 1)
        stopped.frozen = True
        assert await asyncio.wait_for(asyncio.gather(*waiting), 30) == ["other", "other"]
        decisions = [line for ticket in front.gateway.tickets.recent(2) for line in ticket.decisions]
        assert any("gave no sign of life any more" in line for line in decisions)
        stopped.frozen = False


async def test_where_there_is_no_other_one_it_is_waited_for() -> None:
    alone = Freezes("alone", timeouts="probe: 0.1", gate=asyncio.Event())
    async with fleet(alone) as front:
        answer = asyncio.create_task(front.stream())
        await until(lambda: alone.running == 1)
        alone.frozen = True
        member = front.gateway.pools["m"].members["alone"]
        await until(lambda: not member.state.healthy and front.gateway.clock() - member.alive_at > 1.0)
        alone.frozen = False
        alone.let_go()
        assert text_of(await answer)
