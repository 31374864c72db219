"""Whatever happens, a request is settled once: cancelled at any moment, billed absurdly, with a ledger that fails."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import check_drained, until
from tests.routes.routes import Routed, answer, ask, routed
from tests.routes.stub import Stub, serving
from weighbridge.errors import Refused
from weighbridge.fleet.api import Call, Report
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.routes.budget import Budgets, Cashier, Ledger
from weighbridge.routes.build import build_route
from weighbridge.routes.config import parse_configuration
from weighbridge.routes.journey import RouteService
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask


class Scripted:
    """A replica without a socket: every step of its answer is one turn of the event loop."""

    def __init__(self, spec: ReplicaSpec, logprob: float) -> None:
        self.name = spec.name
        self.logprob = logprob
        self.open_answers = 0

    async def open(self, call: Call) -> ScriptedAnswer:
        await asyncio.sleep(0)
        self.open_answers += 1
        return ScriptedAnswer(self)

    async def probe(self) -> Report:
        return Report(at=0.0)

    async def close(self) -> None: ...


class ScriptedAnswer:
    status = 200
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}

    def __init__(self, replica: Scripted) -> None:
        self._replica = replica
        self._closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        content = [{"token": "w", "logprob": self._replica.logprob, "top_logprobs": []}]
        for number in range(4):
            await asyncio.sleep(0)
            choice = {"index": 0, "delta": {"content": f"w{number} "}, "logprobs": {"content": content}}
            yield event({"choices": [choice]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await asyncio.sleep(0)
        yield (
            event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})
            + b"data: [DONE]\n\n"
        )

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._replica.open_answers -= 1


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


CONFIG = """
routes:
  auto:
    edge: {{url: "http://127.0.0.1:1/v1", model: small}}
    cloud:
      url: http://127.0.0.1:2/v1
      model: big
      price: {{input_usd_per_million: 2.5, output_usd_per_million: 10}}
    cascade: {cascade}
"""


@asynccontextmanager
async def scripted(cascade: str, sure: bool) -> AsyncIterator[tuple[Routed, list[Scripted], list[Ticket]]]:
    read = parse_configuration(CONFIG.format(cascade=cascade), "weighbridge.yaml", Path("."))
    replicas: list[Scripted] = []

    def build(spec: ReplicaSpec) -> Scripted:
        replicas.append(Scripted(spec, -0.01 if sure else -5.0))
        return replicas[-1]

    gateway = Gateway(read.fleet, build, seed=1)
    cashier = Cashier(Ledger(None, Budgets(total=1.0)))
    [settings] = read.routes.routes
    route = build_route(settings, gateway, cashier)
    gateway.routes["auto"] = RouteService(route)
    heard: list[Ticket] = []
    gateway.on_finished.append(heard.append)
    await gateway.start()
    try:
        yield Routed(gateway, route, GatewayMetrics(gateway)), replicas, heard
    finally:
        await gateway.close()
        cashier.close()


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


SCENARIOS = {
    "edge": ("{}", True, {}),
    "cloud": ("{}", True, {"placement": "prefer_cloud"}),
    "escalated": ("{threshold: 0.5}", False, {}),
    "race": ("{race: true}", False, {}),
    "samples": ("{samples: 3}", True, {}),
    "window by time": ("{window_ms: 1}", True, {}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_whoever_goes_away_at_any_moment_is_settled_once(
    scenario: str, stream: bool, twice: bool
) -> None:
    """Cancelled after each turn of the loop in turn, once or twice, until the request is quicker than that."""
    cascade, sure, fields = SCENARIOS[scenario]
    reasons = []
    async with scripted(cascade, sure) as (over, replicas, heard):
        for moment in range(400):
            heard.clear()
            request = ask("hello", stream=stream, tenant=f"t{moment}", **fields)
            task = asyncio.create_task(answer(over, request))
            await turns(moment)
            was_done = task.done()
            task.cancel()
            if twice:
                await turns(1 + moment % 5)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await until(lambda: not over.gateway.open_journeys)
            check_drained(over.gateway)
            assert [replica.open_answers for replica in replicas] == [0, 0]
            await until(lambda: over.ledger.spent().reserved == 0.0)
            if not heard:  # it was never let in
                assert moment == 0
                continue
            [ticket] = heard
            reasons.append(ticket.finish_reason)
            assert ticket.finish_reason in ("abort", "stop")
            assert ticket.error is None
            assert ticket.finished is not None
            assert all(leg.finished is not None and leg.outcome is not None for leg in ticket.legs)
            assert ticket.cost_usd == pytest.approx(over.ledger.spent(f"t{moment}").settled, abs=1e-9)
            if was_done:
                break
        else:
            pytest.fail("it never ended")
    assert len(over.gateway.tickets.recent(1000)) == len(reasons)
    assert reasons[0] == "abort"
    assert reasons[-1] == "stop"
    assert over.gateway.unheard == 0


ABSURD = [
    '{"prompt_tokens": Infinity, "completion_tokens": 3}',
    '{"prompt_tokens": NaN, "completion_tokens": NaN}',
    '{"prompt_tokens": 1e30, "completion_tokens": 1e30}',
    '{"prompt_tokens": 4000000000, "completion_tokens": 4000000000}',
    '{"prompt_tokens": -1000000000, "completion_tokens": -1000000000}',
    '{"prompt_tokens": "many", "completion_tokens": []}',
    '{"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1e40}}',
    '{"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": 7}',
    '{"prompt_tokens": 1000, "completion_tokens": 60}',  # which is more than twice what is reserved for it
    '"many"',
    "[10, 3]",
    "7",
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", ABSURD)
async def test_absurd_usage_neither_breaks_the_route_nor_its_money(usage: str, stream: bool) -> None:
    edge, cloud = Stub(answer=lambda body: "local"), Stub(answer=lambda body: "remote", raw_usage=usage)
    budget = Budgets(total=0.1)
    async with serving(edge, cloud) as urls, routed(urls, budgets=budget) as over:
        spent = 0.0
        for _ in range(3):
            found = await answer(
                over, ask("hello there", placement="only_cloud", stream=stream, max_tokens=50)
            )
            assert found.message["content"] == "remote"
            assert found.error is None
            settled = over.ledger.spent().settled
            assert spent < settled < spent + 0.01
            assert settled == pytest.approx(spent + found.ticket.cost_usd, abs=1e-9)
            if not stream:  # of a stream it is what was expected
                told = float(found.headers["x-weighbridge-cost"])
                assert told == pytest.approx(found.ticket.cost_usd, abs=1e-9), "one figure everywhere"
            assert found.ticket.finish_reason == "stop"
            spent = settled
        assert over.ledger.spent().reserved == 0.0
        assert (await answer(over, ask("hello", placement="only_edge"))).message["content"] == "local"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_ledger_that_fails_costs_no_answer_that_was_paid_for(stream: bool, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    edge, cloud = Stub(answer=lambda body: "local"), Stub(answer=lambda body: "remote", first=0.2)
    ledger = Ledger(path, Budgets(total=1.0))
    other = sqlite3.connect(path, isolation_level=None)
    async with serving(edge, cloud) as urls, routed(urls, ledger=ledger) as over:
        asked = asyncio.create_task(answer(over, ask(placement="only_cloud", stream=stream)))
        await until(lambda: cloud.log)
        other.execute("BEGIN IMMEDIATE")  # another process keeps the file
        found = await asked
        assert found.message["content"] == "remote"
        assert found.ticket.cost_usd > 0
        assert ledger.spent().reserved > 0
        meanwhile = await answer(over, ask(placement="prefer_cloud", stream=stream))
        assert meanwhile.message["content"] == "local"
        assert meanwhile.ticket.degraded
        with pytest.raises(Refused, match="the ledger failed"):
            await answer(over, ask(placement="only_cloud"))
        other.execute("COMMIT")
        again = await answer(over, ask(placement="only_cloud", stream=stream))
        assert again.message["content"] == "remote"
        total = found.ticket.cost_usd + again.ticket.cost_usd
        assert ledger.spent().settled == pytest.approx(total, abs=1e-9)
        assert ledger.spent().reserved == 0.0
        over.route.cashier.failures = 0  # as this test wanted them
    other.close()


async def test_an_observer_that_fails_is_counted_and_fails_no_request() -> None:
    def broken(ticket: Ticket) -> None:
        raise RuntimeError("out of order")

    async with scripted("{}", True) as (over, _, heard):
        over.gateway.on_finished.insert(0, broken)
        for _ in range(3):
            request: Ask = ask("hello")
            assert (await answer(over, request)).ticket.finish_reason == "stop"
        assert (over.gateway.unheard, len(heard)) == (3, 3)
