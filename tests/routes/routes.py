"""Gateways with one route over stubs, and requests to them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from tests.fleet.backends import check_drained, until
from weighbridge.cost.price import Price
from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.budget import Budgets, Cashier, Ledger
from weighbridge.routes.build import build_route
from weighbridge.routes.config import parse_configuration
from weighbridge.routes.journey import RouteService
from weighbridge.routes.place import Place
from weighbridge.routes.policy import ResidencyPolicy
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.patterns import PatternDetector
from weighbridge.routes.route import Route
from weighbridge.routes.settings import CascadeSettings
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.ticket import Ticket, TicketStore
from weighbridge.wire.ask import Ask
from weighbridge.wire.events import Event
from weighbridge.wire.extension import apply_caller
from weighbridge.wire.protocols.chat import ChatProtocol

PRICE = Price(2.5, 10.0)

CONFIG = """
routes:
  auto:
    edge: {{url: "{edge}", model: {model}}}
    cloud:
      url: "{cloud}"
      model: big
      price: {{input_usd_per_million: 2.5, output_usd_per_million: 10}}
      timeouts: {{first_byte: 3, idle: 3}}
"""


@dataclass
class Routed:
    """A route at work in a gateway of its own."""

    gateway: Gateway
    route: Route
    metrics: GatewayMetrics

    @property
    def edge(self) -> Place:
        return self.route.places["edge"]

    @property
    def cloud(self) -> Place:
        return self.route.places["cloud"]

    @property
    def ledger(self) -> Ledger:
        return self.route.cashier.ledger

    @property
    def tickets(self) -> TicketStore:
        return self.gateway.tickets

    def in_flight(self) -> int:
        """Requests that any replica still has."""
        members = [member for pool in self.gateway.pools.values() for member in pool.members.values()]
        return sum(member.state.requests for member in members)


@asynccontextmanager
async def routed(
    urls: Sequence[str],
    *,
    policy: ResidencyPolicy | None = None,
    cascade: CascadeSettings | None = None,
    budgets: Budgets | None = None,
    detectors: Sequence[Detector] = (PatternDetector(),),
    timeout: float = 5.0,
    ledger: Ledger | None = None,
    scorer: Any = None,
    readers: Any = None,
    observer: Any = None,
    model: str = "small",
    config: str = CONFIG,
    **settings: Any,
) -> AsyncIterator[Routed]:
    """The first URL is the edge's, the second the cloud's. Everything is settled when the block ends."""
    text = config.format(edge=urls[0], cloud=urls[1], model=model)
    read = parse_configuration(text, "weighbridge.yaml", Path("."))
    gateway = Gateway(read.fleet, build_replica, seed=1)
    [known] = read.routes.routes
    chosen = replace(
        known, policy=policy or ResidencyPolicy(), cascade=cascade or CascadeSettings(), **settings
    )
    cashier = Cashier(ledger or Ledger(None, budgets or Budgets()))
    route = build_route(chosen, gateway, cashier)
    route.guard = Guard(detectors, timeout=timeout)
    route.scorer, route.readers = scorer, readers
    if observer is not None:
        route.observer = observer
        observer.route = route
    gateway.routes["auto"] = RouteService(route)
    metrics = GatewayMetrics(gateway)
    await gateway.start()
    try:
        yield Routed(gateway, route, metrics)
        if observer is None:
            await until(lambda: not gateway.open_journeys)
            check_drained(gateway)
            assert gateway.unheard == 0
            assert cashier.failures == 0
    finally:
        await gateway.close()
        cashier.close()


def ask(text: Any = "hello", *, headers: Any = None, **fields: Any) -> Ask:
    """A request to the route; `placement`, `labels` and so on go into its extension."""
    names = ("placement", "labels", "max_usd", "deadline_ms", "tenant", "priority")
    extension = {name: fields.pop(name) for name in names if name in fields}
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    body = {"model": "auto", "messages": messages, "weighbridge": extension, **fields}
    read = ChatProtocol().read(msgspec.json.encode(body))
    apply_caller(read, headers or {}, None, 0.0)
    read.deadline = None  # the clock of these tests starts anywhere
    read.id = uuid.uuid4().hex
    return read


@dataclass
class Answered:
    """What a client has of its request in the end."""

    ticket: Ticket
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None  # of a whole answer
    events: list[Event] = field(default_factory=list)

    @property
    def chunks(self) -> list[Any]:
        """The decoded events of a stream; `[DONE]` stays text."""
        data = b"".join(event.raw for event in self.events).split(b"\n\n")
        texts = [each.removeprefix(b"data: ") for each in data if each]
        return [each.decode() if each == b"[DONE]" else msgspec.json.decode(each) for each in texts]

    @property
    def error(self) -> Any:
        """The error that a stream ended with, if it did."""
        last = self.chunks[-1] if self.events else None
        return last.get("error") if isinstance(last, dict) else None

    @property
    def message(self) -> dict[str, Any]:
        """The message of the first choice, put together from a stream where there was one."""
        if self.body is not None:
            found: dict[str, Any] = self.body["choices"][0]["message"]
            return found
        content, calls = "", {}
        for chunk in self.chunks:
            for choice in chunk.get("choices") or () if isinstance(chunk, dict) else ():
                delta = choice["delta"]
                content += delta.get("content") or ""
                for call in delta.get("tool_calls") or ():
                    known = calls.setdefault(
                        call["index"], {"id": "", "function": {"name": "", "arguments": ""}}
                    )
                    known["id"] = known["id"] or call.get("id", "")
                    known["function"]["arguments"] += call["function"].get("arguments") or ""
        return {"content": content, **({"tool_calls": list(calls.values())} if calls else {})}


async def answer(over: Routed, request: Ask) -> Answered:
    """Everything a door does with a request. Raises Refused where there is no answer."""
    journey = await over.gateway.admit(request)
    error: str | None = None
    try:
        opened = await journey.open()
        if opened.is_stream:
            headers = journey.headers()
            events = [event async for event in journey.stream()]
            assert [event.last for event in events].index(True) == len(events) - 1
            return Answered(journey.ticket, _named(headers), events=events)
        body = (await journey.whole()).body
        return Answered(journey.ticket, _named(journey.headers()), msgspec.json.decode(body))
    except WeighbridgeError as failure:
        error = str(failure)
        raise
    finally:
        await journey.close(error)


def _named(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}
