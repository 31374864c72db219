"""Adapters on their own: a replica in this process, servers of other dialects, lines kept open."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.fleet.backends import Backend, events, fleet, text_of, until
from tests.fleet.test_gateway_parts import LLAMA, SGLANG, VLLM
from weighbridge.fleet.api import Call
from weighbridge.fleet.replica import Failure, ReplicaError, Timeouts
from weighbridge.fleet.replicas.local import HIGH_WATER, LocalReplica
from weighbridge.wire import answer as wire_answer


def call(**fields: Any) -> Call:
    body = {"prompt": "x", "stream": True, **fields}
    return Call("/v1/completions", json.dumps(body).encode(), {}, bool(body["stream"]))


async def test_an_application_in_this_process_is_a_replica() -> None:
    backend = Backend("inside", tokens=3)
    started = []
    replica = LocalReplica("inside", backend, start=lambda: started.append(1), stop=lambda: started.append(2))
    assert (await replica.probe()).kv_tokens_total == 160_000
    answer = await replica.open(call())
    assert (answer.status, answer.headers["x-own"]) == (200, "kept")
    assert text_of(events(b"".join([chunk async for chunk in answer.chunks()]))) == " t0 t1 t2"
    await answer.close()
    whole = await replica.open(call(stream=False))
    assert (
        json.loads(b"".join([chunk async for chunk in whole.chunks()]))["choices"][0]["text"] == " t0 t1 t2"
    )
    await replica.close()
    assert started == [1, 2]


async def test_closing_a_local_answer_cancels_the_work() -> None:
    backend = Backend("inside", tokens=1000, gap=0.01)
    answer = await LocalReplica("inside", backend).open(call())
    async for _ in answer.chunks():
        break
    await answer.close()
    await until(lambda: backend.cancelled == 1 and not backend.running)


async def test_a_local_application_that_breaks_off_or_is_silent() -> None:
    breaking = await LocalReplica("x", Backend("x", break_after=1)).open(call())
    with pytest.raises(ReplicaError, match="broke off"):
        [chunk async for chunk in breaking.chunks()]
    silent = await LocalReplica("x", Backend("x", stall_after=1), timeouts=Timeouts(idle=0.1)).open(call())
    with pytest.raises(ReplicaError, match="silent") as caught:
        [chunk async for chunk in silent.chunks()]
    assert caught.value.kind is Failure.IDLE
    await silent.close()
    with pytest.raises(ReplicaError, match="nothing came"):
        await LocalReplica("x", Backend("x", first_delay=9), timeouts=Timeouts(answer=0.1)).open(
            call(stream=False)
        )


async def test_a_slow_reader_holds_a_local_application_back() -> None:
    sent = 0

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent < 64:
            sent += 1
            await send({"type": "http.response.body", "body": b"x" * 32768, "more_body": sent < 64})

    answer = await LocalReplica("x", flood).open(call())
    await asyncio.sleep(0.05)
    assert sent <= HIGH_WATER // 32768 + 1
    assert sum([len(chunk) async for chunk in answer.chunks()]) == 64 * 32768


@pytest.mark.parametrize(
    ("dialect", "page", "requests", "pool"),
    [("vllm", VLLM, 5, 16_000), ("sglang", SGLANG, 5, 1000), ("llama-server", LLAMA, 7, None)],
)
async def test_other_servers_tell_their_load(
    dialect: str, page: bytes, requests: int, pool: int | None
) -> None:
    backend = Backend("a", page=page)
    async with fleet(backend) as front:
        config = (
            "health: {interval: 0.05}\nmodels:\n  m:\n    replicas:\n"
            f"      - {{name: a, url: '{backend.url}', dialect: {dialect}}}\n"
        )
        async with fleet(config=config) as other:
            state = other.gateway.pools["m"].members["a"].state
            assert state.others.queued_requests == requests
            assert state.capacity.kv_tokens == pool
            assert text_of(await other.stream()) == " t0 t1 t2 t3 t4"
            backend.page = b"# nothing that we know\n"
            seen = backend.probes
            await until(lambda: backend.probes >= seen + 3)
            assert other.gateway.ready  # it answers, so it lives
        assert front.gateway.ready


async def test_nonsense_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("weighbridge").propagate = True
    with caplog.at_level(logging.WARNING, "weighbridge"):
        backend = Backend("a", load={"queued_requests": -1})
        async with fleet(backend):
            await until(lambda: backend.probes >= 5)
    said = [one.getMessage() for one in caplog.records if "is not used" in one.getMessage()]
    assert any("queued_requests is -1" in line for line in said)
    assert len(said) == 1


async def test_a_line_is_kept_open_while_a_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_answer, "KEEP_ALIVE_SECONDS", 0.1)
    backend = Backend("a", gate=asyncio.Event(), tokens=2)
    async with fleet(backend) as front:
        async with front.post(stream=True) as answer:
            data = await answer.content.readany()
            backend.let_go()
            data += await answer.read()
        assert data.startswith(b": keep-alive\n\n")
        assert text_of(events(data)) == " t0 t1"
        backend.statuses = [500] * 9
        member = front.gateway.pools["m"].members["a"]
        member.hold(front.gateway.clock() + 9.0, "rests")
        async with front.post(stream=True) as answer:
            assert answer.status == 200  # the line was opened while it waited: the error can only be an event
            member.held_until = 0.0
            last = events(await answer.read())[-1]
        assert "500" in last["error"]["message"]


async def test_a_reader_that_is_slow_is_not_a_replica_that_is_silent() -> None:
    backend = Backend("a", tokens=3000)
    async with (
        fleet(backend, top="timeouts: {idle: 2}") as front,
        front.post("/v1/completions", stream=True) as answer,
    ):
        await asyncio.sleep(2.5)
        stream = events(await answer.read())
    assert stream[-1] == "[DONE]"
    assert len(stream) == 3002
