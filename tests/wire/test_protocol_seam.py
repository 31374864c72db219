"""A third, invented protocol is one module: nothing behind the door knows of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fleet.backends import Backend, clients, config_of, serving, until
from tests.wire.telegram import TelegramProtocol
from weighbridge.cost import DEFAULT_STEP_COST, StepClock
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.schedule.scheduler import Scheduler
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.server.app import create_app
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.engine.service import EngineService
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.settings import ServerSettings
from weighbridge.simulator.served.runner import SimulatedRunner
from weighbridge.simulator.served.tokenizer import SimulatedTokenizer
from weighbridge.ticket import TicketStore
from weighbridge.wire.protocols import PROTOCOLS

SPOKEN = (*PROTOCOLS, TelegramProtocol())


@asynccontextmanager
async def gateway_door(backend: Backend) -> AsyncIterator[tuple[str, Any]]:
    async with serving(backend) as url:
        backend.url = url
        gateway = Gateway(parse_config(config_of([backend]), "f", Path(".")), build_replica, seed=1)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway)), protocols=SPOKEN)
        async with serving(app, "on") as front, clients() as client:
            await until(lambda: gateway.ready)
            yield front, client


@asynccontextmanager
async def engine_door() -> AsyncIterator[tuple[str, Any]]:
    clock, tokenizer = StepClock(DEFAULT_STEP_COST), SimulatedTokenizer()
    runner = SimulatedRunner(
        DEFAULT_STEP_COST, None, seed=1, words=(5,), end_of_text=tokenizer.eos_token_ids[0]
    )
    scheduler = Scheduler(SchedulerSettings(num_blocks=64, block_size=16, max_model_len=512), clock)
    engine = LocalEngine("m", tokenizer, scheduler, runner, clock, kv_bytes_per_token=0)
    metrics = EngineMetrics(engine, TicketStore())
    engine.observers.append(metrics)
    service = EngineService(
        engine, tokenizer, ServerSettings(), metrics, lambda guide: Future(), engine.start
    )
    try:
        async with serving(create_app(service, protocols=SPOKEN), "on") as front, clients() as client:
            yield front, client
    finally:
        engine.stop()


async def lines(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await answer.read()).splitlines()]


async def test_a_gateway_translates_a_stream_of_chat_chunks() -> None:
    async with gateway_door(Backend("a", tokens=3)) as (url, client):
        async with client.post(url + "/telegram", json={"to": "m", "text": "hello", "wire": True}) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            said = await lines(answer)
        assert [line for line in said if "say" in line]
        assert said[-1]["stop"]
        assert said[-1]["paid"][1] == 3


async def test_a_gateway_translates_a_whole_chat_and_errors_both_ways() -> None:
    async with gateway_door(Backend("a", tokens=3)) as (url, client):
        async with client.post(url + "/telegram", json={"to": "m", "text": "hello"}) as answer:
            body = await answer.json()
            assert body["said"]
            assert body["paid"][1] == 3
            assert "x-weighbridge-ticket" in answer.headers
        async with client.post(url + "/telegram", json={"to": "nobody", "text": "hello"}) as answer:
            assert answer.status == 404
            assert (await lines(answer))[0]["number"] == 404


async def test_one_engine_answers_the_same_protocol() -> None:
    async with engine_door() as (url, client):
        wanted = {"text": "how heavy is it", "words": 4}
        async with client.post(url + "/telegram", json={**wanted, "wire": True}) as answer:
            said = await lines(answer)
        assert said[-1]["paid"][1] == 4
        async with client.post(url + "/telegram", json=wanted) as answer:
            body = await answer.json(content_type=None)
        assert body["paid"] == said[-1]["paid"]


async def test_its_caller_is_read_like_everybody_elses() -> None:
    backend = Backend("a", tokens=2)
    async with gateway_door(backend) as (url, client):
        headers = {"x-weighbridge-tenant": "jane", "x-weighbridge-priority": "-999999"}
        async with client.post(url + "/telegram", json={"to": "m", "text": "x"}, headers=headers) as answer:
            assert answer.status == 200
        assert backend.calls[-1]["weighbridge"]["tenant"] == "jane"
        assert backend.calls[-1]["weighbridge"]["priority"] == -1000
