"""A gateway whose models are loaded on demand, each a small server in a process of its own (`child.py`)."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fleet.backends import Front, clients, serving
from weighbridge.fleet.api import Replica
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.on_demand.occupancy import ModelNeeds
from weighbridge.fleet.on_demand.residents import Residents
from weighbridge.fleet.replicas.build import endpoint_of
from weighbridge.fleet.replicas.process import ProcessReplica, Program
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService

CHILD = Path(__file__).with_name("child.py")


@dataclass
class House(Front):
    """The gateway, what decides for it, and its models' processes."""

    residents: Residents

    def pid(self, model: str) -> int:
        (member,) = self.gateway.pools[model].members.values()
        replica = member.replica
        assert isinstance(replica, ProcessReplica)
        assert replica.pid is not None
        return replica.pid

    async def ask(self, model: str, tokens: int = 3, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of a completion."""
        async with self.post("/v1/completions", model=model, max_tokens=tokens, **fields) as answer:
            return answer.status, {**await answer.json(), "retry_after": answer.headers.get("retry-after")}

    async def states(self) -> dict[str, str]:
        models = (await self.get("/v1/models"))["data"]
        return {one["id"]: one["status"]["value"] for one in models}

    async def latest_decisions(self) -> list[str]:
        newest = (await self.get("/v1/tickets"))["data"][0]["id"]
        told = await self.get(f"/v1/tickets/{newest}")
        return [str(one) for one in told["decisions"]]


def _build(spec: ReplicaSpec) -> Replica:
    command = (sys.executable, str(CHILD), *spec.options, "--host", "{host}", "--port", "{port}")
    program = Program(command, again=False, drain=5.0)
    return ProcessReplica(spec.name, program, lambda base: endpoint_of(spec, base))


@asynccontextmanager
async def house(
    models: Sequence[str],
    memory: int,
    *,
    settings: str = "hold: 0, turn: 0",
    options: Mapping[str, Sequence[str]] | None = None,
    keep: Sequence[str] = (),
    more: str = "",
) -> AsyncIterator[House]:
    """Models of one byte each, in memory for `memory` of them. `options`: of a model's server. `more`: settings."""
    told = options or {}
    entries = "".join(
        f"  {name}: {{replicas: [{{process: none, options: {list(told.get(name, ()))}}}]}}\n"
        for name in models
    )
    text = f"on_demand: {{{settings}}}\nhealth: {{interval: 0.05, slow_start: 0}}\n{more}models:\n{entries}"
    spec = parse_config(text, "weighbridge.yaml", Path("."))
    assert spec.on_demand is not None
    gateway = Gateway(spec, _build, {}, seed=1)
    needs = [ModelNeeds(name, 1, keep=name in keep, keep_alive=spec.on_demand.keep_alive) for name in models]
    residents = Residents(gateway, spec.on_demand, needs, memory)
    app = create_app(GatewayService(gateway, GatewayMetrics(gateway), None, residents))
    async with serving(app, "on") as url, clients() as client:
        front = House(url, gateway, client, residents)
        yield front
        await front.idle()
        residents.occupancy.check_integrity()
