"""A wall clock that is set back while requests run: what is told of them stays of this world, at every door."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import FormData

from tests.fleet.backends import Backend, body, clients, fleet, serving
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)
from weighbridge.server.console.recorder import Recorder
from weighbridge.server.watching.history import ServerHistory
from weighbridge.state import believed_time
from weighbridge.state.believed_time import LONGEST_DOUBT, BelievedTime

CHAT = "/v1/chat/completions"


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a minute before the last."""
    now, steps = time.time(), itertools.count()
    monkeypatch.setattr(time, "time", lambda: now - 60.0 * next(steps))


async def check(client: Any, url: str) -> None:
    """Ask, streamed and whole; then no sum is below nothing, and no ticket took less than no time."""
    asked = {name: value for name, value in body(CHAT).items() if name != "model"}  # whichever is served
    for stream in (True, False):
        async with client.post(url + CHAT, json={**asked, "stream": stream, "max_tokens": 4}) as answer:
            assert answer.status == 200
            await answer.read()

    async def told() -> list[dict[str, Any]]:
        async with client.get(url + "/v1/tickets") as answer:
            return list((await answer.json())["data"])

    tickets = await told()
    assert len(tickets) == 2
    figures = [one[name] for one in tickets for name in ("ttft_ms", "e2e_ms", "itl_ms") if name in one]
    assert figures
    assert min(figures) >= 0.0
    async with client.get(url + "/metrics") as answer:
        page = (await answer.text()).splitlines()
    sums = {
        line.split()[0]: float(line.split()[-1]) for line in page if "_sum" in line.split("{")[0].split()[0]
    }
    assert sums
    assert not {name: value for name, value in sums.items() if value < 0.0}


@pytest.mark.usefixtures("falling")
async def test_a_gateway_counts_no_time_backwards() -> None:
    async with fleet(Backend("a")) as front:
        await check(front.client, front.url)


@pytest.mark.usefixtures("falling")
async def test_a_single_server_counts_no_time_backwards() -> None:
    running = assemble_simulated(SimulatedMachine(time_scale=0.01), ServedEngine(), SimulatedServer())
    async with serving(running.app, "on") as url, clients() as client:
        await check(client, url)
    running.engine.stop()


# -- a clock that is set for a while -----------------------------------------------------------------------------

DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Sets the wall clock of a process that has run for an hour."""
    real, steady = time.time, believed_time._steady()
    stood = BelievedTime(real() - steady, steady - LONGEST_DOUBT)
    monkeypatch.setattr(believed_time, "_clock", believed_time._Clock(stood))
    yield lambda by: monkeypatch.setattr(time, "time", lambda: real() + by)
    monkeypatch.setattr(time, "time", real)


async def keeps_all(client: Any, url: str, model: str, set_by: Callable[[float], None], step: float) -> None:
    async def asked(method: str, path: str, **more: Any) -> Any:
        async with client.request(method, url + path, **more) as answer:
            assert answer.status == 200, (path, await answer.text())
            return await answer.json() if "json" in answer.headers["content-type"] else await answer.text()

    line = {"custom_id": "a", "method": "POST", "url": CHAT}
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    form = FormData({"purpose": "batch"})
    form.add_field("file", json.dumps({**line, "body": chat}), filename="lines.jsonl")
    name = (await asked("POST", "/v1/files", data=form))["id"]
    kept = await asked("POST", "/v1/responses", json={"model": model, "input": "hi", "max_output_tokens": 4})
    set_by(step)
    wanted = {"input_file_id": name, "endpoint": CHAT, "completion_window": "1h"}
    made = (await asked("POST", "/v1/batches", json=wanted))["id"]
    await asyncio.sleep(1.5)  # the console's history closes a second
    set_by(0.0)
    batch = {"status": "in_progress"}
    for _ in range(300):
        batch = await asked("GET", f"/v1/batches/{made}")
        if batch["status"] in ("completed", "expired", "failed"):
            break
        await asyncio.sleep(0.1)
    assert batch["status"] == "completed"
    assert await asked("GET", f"/v1/files/{name}/content")
    assert (await asked("GET", f"/v1/responses/{kept['id']}"))["id"] == kept["id"]


@pytest.mark.parametrize("step", [366 * DAY, 2 * DAY, -2 * DAY, -366 * DAY])
async def test_a_gateway_loses_nothing_by_a_clock_that_is_set_for_a_while(
    clock: Callable[[float], None], step: float
) -> None:
    async with fleet(Backend("a")) as front:
        await keeps_all(front.client, front.url, body(CHAT)["model"], clock, step)


@pytest.mark.parametrize("step", [366 * DAY, -366 * DAY])
async def test_a_single_server_loses_nothing_by_a_clock_that_is_set_for_a_while(
    clock: Callable[[float], None], step: float
) -> None:
    running = assemble_simulated(SimulatedMachine(time_scale=0.01), ServedEngine(), SimulatedServer())
    async with serving(running.app, "on") as url, clients() as client:
        async with client.get(url + "/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        await keeps_all(client, url, model, clock, step)
    running.engine.stop()


class Seen:
    """A service of which one second is like the other."""

    def __init__(self) -> None:
        self.history = ServerHistory()

    def produced(self) -> int:
        return 1

    def levels(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("back", [1, 30, 3600, 365 * 86_400])
def test_the_consoles_history_stands_still_for_a_minute_at_most(back: int) -> None:
    now = [1_800_000_000.0]
    seen: Any = Seen()
    recorder = Recorder(seen, lambda: now[0])
    for _ in range(20):
        recorder.take()
        now[0] += 1.0
    now[0] -= back
    for _ in range(70):
        recorder.take()
        now[0] += 1.0
    told = seen.history.told()["seconds"]
    assert told == sorted(set(told)), "no second twice, and none before an earlier one"
    assert told[-1] == now[0] - 1.0
