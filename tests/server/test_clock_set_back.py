"""A wall clock that is set back while requests run: what is told of them stays of this world, at every door."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from tests.fleet.backends import Backend, body, clients, fleet, serving
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)

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
