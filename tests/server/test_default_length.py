"""How long an answer is where its client names no bound, as agents that speak Responses do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet.backends import clients, serving
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)

HI = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", {"messages": HI}), ("/v1/responses", {"input": "hello"})],
)
@pytest.mark.parametrize("longest", [1, 3000])
async def test_an_answer_without_a_bound_has_that_of_its_server(
    path: str, body: dict[str, Any], longest: int
) -> None:
    settings = SimulatedServer(default_max_tokens=longest)
    simulated = assemble_simulated(SimulatedMachine(), ServedEngine(), settings)
    async with serving(simulated.app, "on") as url, clients() as client:
        async with client.post(url + path, json={**body, "model": "simulated"}) as answer:
            assert answer.status == 200, await answer.text()
        async with client.get(url + "/v1/tickets?limit=1") as answer:
            [ticket] = (await answer.json())["data"]
    assert ticket["max_tokens"] == longest
    assert ticket["output_tokens"] <= longest
