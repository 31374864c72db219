"""Requests of a client that traces, through a gateway and routes to replicas, on real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, all_served, clients, serving, until
from tests.fleet.test_gateway_routes import ESCALATE, Unsure, config
from tests.server.tracing.collector import Collector, Seen, collecting
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)
from weighbridge.fleet.config.tracing import TraceSettings
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import parse_configuration
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.lifecycle import JsonLines
from weighbridge.server.tracing.tracer import trace, tracer_of
from weighbridge.ticket.span import new_span_id, new_trace_id
from weighbridge.ticket.trace import current

SECRET = "jane-the-secret-prompt"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collecting() as one:
        yield one


@asynccontextmanager
async def traced(text: str, collector: Collector, **settings: Any) -> AsyncIterator[Front]:
    """A gateway that traces, over what `text` configures."""
    read = parse_configuration(text, "weighbridge.yaml", Path("."))
    gateway = Gateway(read.fleet, build_replica, seed=1)
    usage = add_routes(gateway, read.routes)
    metrics = GatewayMetrics(gateway)
    service = GatewayService(gateway, metrics, usage)
    trace(service, metrics, tracer_of(TraceSettings(otlp_endpoint=collector.url, **settings)))
    async with serving(create_app(service), "on") as url, clients() as client:
        front = Front(url, gateway, client)
        await until(lambda: gateway.ready)
        yield front
        await front.idle()


@asynccontextmanager
async def engine(collector: Collector) -> AsyncIterator[str]:
    simulated = assemble_simulated(
        SimulatedMachine(served_model_name="m"),
        ServedEngine(),
        SimulatedServer(otlp_endpoint=collector.url),
    )
    async with serving(simulated.app, "on") as url:
        yield url
    simulated.engine.stop()


def over(*urls: str, more: str = "", top: str = "") -> str:
    entries = ", ".join(f"{{name: r{i}, url: '{url}'{more}}}" for i, url in enumerate(urls))
    return f"{top}\nhealth: {{interval: 0.05, slow_start: 0}}\nmodels: {{m: {{replicas: [{entries}]}}}}\n"


OURS = ", dialect: weighbridge"


class Parent:
    """The span of a client."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.span_id = new_trace_id(), new_span_id()
        self.headers = {
            "traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}",
            "tracestate": "vendor=x",
            "baggage": f"user={SECRET}",
        }


async def spans(collector: Collector, trace_id: str, count: int) -> list[Seen]:
    return await asyncio.to_thread(collector.of, trace_id, count)


def one(found: list[Seen], **wanted: Any) -> Seen:
    (match,) = [span for span in found if all(getattr(span, key) == value for key, value in wanted.items())]
    return match


async def ask(front: Front, parent: Parent, **fields: Any) -> dict[str, Any]:
    """Ask, and return the ticket."""
    messages = [{"role": "user", "content": f"What is it? {SECRET}"}]
    async with front.post(headers=parent.headers, messages=messages, **fields) as answer:
        await answer.read()
        name = answer.headers["x-weighbridge-ticket"]
    await front.idle()
    told: dict[str, Any] = await front.get(f"/v1/tickets/{name}")
    return told


def check_private(collector: Collector) -> None:
    """Nothing that anybody wrote to a model, or a model to anybody, is in a span."""
    for span in collector.spans:
        assert SECRET not in json.dumps([span.name, span.attributes, span.resource, span.state])
        assert "t0" not in json.dumps(span.attributes)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_trace_goes_from_the_client_through_the_gateway_into_the_engine(
    collector: Collector, stream: bool
) -> None:
    parent = Parent()
    async with engine(collector) as url, traced(over(url, more=OURS), collector) as front:
        told = await ask(front, parent, max_tokens=4, stream=stream)
        found = await spans(collector, parent.trace_id, 8)
        front_door = one(found, kind="SERVER", parent_id=parent.span_id)
        assert front_door.name == "POST /v1/chat/completions"
        assert front_door.attributes["http.response.status_code"] == 200
        assert front_door.attributes["weighbridge.ticket"] == told["id"]
        assert front_door.flags & 0x301 == 0x301  # sampled, and its parent is elsewhere
        call = one(found, kind="CLIENT")
        assert (call.parent_id, call.name) == (front_door.span_id, "chat m")
        back_door = one(found, kind="SERVER", parent_id=call.span_id)
        computed = one(found, kind="INTERNAL", name="chat m")
        assert computed.parent_id == back_door.span_id
        assert {span.name for span in found if span.parent_id == computed.span_id} == {
            "queue",
            "prefill",
            "decode",
        }
        one(found, name="queue", parent_id=front_door.span_id)
        assert {span.state for span in found} == {"vendor=x"}
        for span in (call, computed):
            assert span.attributes["gen_ai.operation.name"] == "chat"
            assert span.attributes["gen_ai.provider.name"] == "weighbridge"
            assert span.attributes["gen_ai.request.model"] == "m"
            assert span.attributes["gen_ai.request.max_tokens"] == 4
            assert span.attributes["gen_ai.request.stream"] == stream
            assert span.attributes["gen_ai.usage.output_tokens"] == 4
            assert span.attributes["gen_ai.usage.input_tokens"] == told["prompt_tokens"]
            assert span.attributes["gen_ai.response.finish_reasons"] == ["length"]
            assert ("gen_ai.response.time_to_first_chunk" in span.attributes) == stream
        host, port = url.removeprefix("http://").split(":")
        assert (call.attributes["server.address"], call.attributes["server.port"]) == (host, int(port))
        assert call.attributes["weighbridge.replica"] == "r0"
        assert front_door.start <= call.start <= computed.start <= computed.end
        assert told["trace"] == {
            "trace_id": parent.trace_id,
            "span_id": front_door.span_id,
            "parent_id": parent.span_id,
            "sampled": True,
        }
        assert not any(span.failed for span in found)
    check_private(collector)


async def test_each_try_is_a_span_and_a_failed_one_says_how(collector: Collector) -> None:
    bad, good = Backend("bad", statuses=[500] * 3), Backend("good", first_delay=0.05)
    parent = Parent()
    async with all_served((bad, good)), traced(over(bad.url, good.url, more=OURS), collector) as front:
        while not bad.calls:
            parent = Parent()
            await ask(front, parent)
        found = await spans(collector, parent.trace_id, 4)
    calls = [span for span in found if span.kind == "CLIENT"]
    failed, answered = sorted(calls, key=lambda span: span.start)
    assert (failed.failed, failed.attributes["error.type"]) == (True, "failed")
    assert failed.attributes["http.response.status_code"] == 500
    assert "gen_ai.usage.output_tokens" not in failed.attributes
    assert answered.attributes["weighbridge.try"] == 2
    assert answered.attributes["gen_ai.usage.output_tokens"] == 5
    sent = [headers["traceparent"].split("-")[2] for headers in (bad.headers[-1], good.headers[-1])]
    assert sent == [failed.span_id, answered.span_id]
    assert not one(found, kind="SERVER").failed
    check_private(collector)


async def test_a_stream_that_breaks_off_is_a_failure_of_both(collector: Collector) -> None:
    parent = Parent()
    backend = Backend(break_after=2)
    async with all_served((backend,)), traced(over(backend.url, more=OURS), collector) as front:
        told = await ask(front, parent, stream=True)
        assert told["finish_reason"] == "error"
        found = await spans(collector, parent.trace_id, 3)
    call, door = one(found, kind="CLIENT"), one(found, kind="SERVER")
    assert (call.failed, call.attributes["error.type"]) == (True, "broken")
    assert (door.failed, door.attributes["error.type"]) == (True, "broken_off")
    check_private(collector)


async def test_the_legs_of_a_route_are_spans_with_their_calls_below(collector: Collector) -> None:
    edge, cloud, parent = Unsure("edge"), Backend("cloud"), Parent()
    async with all_served((edge, cloud)), traced(config(edge.url, cloud.url, ESCALATE), collector) as front:
        told = await ask(front, parent, model="auto")
        found = await spans(collector, parent.trace_id, 7)
    door = one(found, kind="SERVER")
    for leg, backend in zip(told["legs"], (edge, cloud), strict=True):
        span = one(found, span_id=leg["span_id"])
        assert (span.parent_id, span.name) == (door.span_id, f"leg {leg['place']}")
        call = one(found, kind="CLIENT", parent_id=span.span_id)
        assert call.attributes["gen_ai.usage.output_tokens"] == 5
        is_told = "traceparent" in backend.headers[-1]
        assert is_told == (backend is edge), "beyond the boundary nobody learns of the trace"
        if is_told:
            assert backend.headers[-1]["traceparent"].split("-")[2] == call.span_id
        assert ("baggage" in backend.headers[-1]) == (backend is edge)
    check_private(collector)


@pytest.mark.parametrize(
    ("entry", "traces", "baggage"),
    [
        (", dialect: vllm", True, True),
        ("", True, True),  # on this machine
        (", dialect: vllm, traces: false", False, True),
    ],
)
async def test_who_is_told_of_a_trace(collector: Collector, entry: str, traces: bool, baggage: bool) -> None:
    backend, parent = Backend(), Parent()
    async with all_served((backend,)), traced(over(backend.url, more=entry), collector) as front:
        await ask(front, parent)
    got = backend.headers[-1]
    assert ("traceparent" in got, "tracestate" in got, "baggage" in got) == (traces, traces, baggage)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("flags", ["00", "01", None])
async def test_the_callers_word_on_sampling_holds_and_the_share_counts_without_one(
    collector: Collector, ratio: float, flags: str | None
) -> None:
    backend = Backend()
    async with (
        all_served((backend,)),
        traced(over(backend.url, more=OURS), collector, trace_ratio=ratio) as front,
    ):
        parent = Parent(flags or "01")
        if flags is None:
            parent.headers = {}
        told = await ask(front, parent)
        kept = ratio == 1.0 if flags is None else flags == "01"
        sent = backend.headers[-1]["traceparent"].split("-")
        assert sent[1] == told["trace"]["trace_id"]
        assert sent[3] == ("01" if kept else "00")
        assert told["trace"]["sampled"] is kept
        if kept:
            assert await spans(collector, told["trace"]["trace_id"], 3)
        async with front.client.get(front.url + "/metrics") as page:
            assert "weighbridge_traces_total" in await page.text()
    assert bool(collector.spans) is kept


async def test_refusals_are_traced_too(collector: Collector) -> None:
    async with engine(collector) as url, clients() as client:
        for body, status in ((b"{", 400), (b'{"model": "none", "messages": []}', 404)):
            parent = Parent()
            async with client.post(f"{url}/v1/chat/completions", data=body, headers=parent.headers) as answer:
                assert answer.status in (400, status)
                (span,) = await spans(collector, parent.trace_id, 1)
            assert span.attributes["http.response.status_code"] == answer.status
            assert not span.failed
    check_private(collector)


async def test_each_prompt_of_a_request_is_computed_in_a_span_of_its_own(collector: Collector) -> None:
    parent = Parent()
    async with engine(collector) as url, clients() as client:
        body = {"model": "m", "prompt": ["one", "two two"], "max_tokens": 3}
        async with client.post(f"{url}/v1/completions", json=body, headers=parent.headers) as answer:
            used = (await answer.json())["usage"]
        found = await spans(collector, parent.trace_id, 9)
    computed = [span for span in found if span.name == "text_completion m"]
    assert len(computed) == 2
    for name in ("input", "output"):
        told = sum(span.attributes[f"gen_ai.usage.{name}_tokens"] for span in computed)
        assert told == used["prompt_tokens" if name == "input" else "completion_tokens"]


async def test_log_lines_of_a_request_name_its_trace(collector: Collector) -> None:
    backend, parent = Backend(), Parent()
    lines: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines().format(record)))

    logger, handler = logging.getLogger("weighbridge.fleet"), Kept()
    logger.addHandler(handler)
    try:
        async with all_served((backend,)), traced(over(backend.url, more=OURS), collector) as front:
            backend.refuses = lambda path, body: (404, {"error": {"message": "x", "code": "model_not_found"}})
            async with front.post(headers=parent.headers) as answer:
                await answer.read()
    finally:
        logger.removeHandler(handler)
    assert [line for line in lines if line.get("trace_id") == parent.trace_id]
    assert current.get() is None


async def test_without_a_collector_nothing_is_made_and_headers_go_on_as_they_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a span, not a thread, not a look at a header: the door has no tracer to ask."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tracing is off")

    monkeypatch.setattr("weighbridge.ticket.trace.Trace.__init__", never)
    monkeypatch.setattr("weighbridge.ticket.trace.SentCall.__init__", never)
    monkeypatch.setattr("weighbridge.server.tracing.exporter.Exporter.__init__", never)
    assert tracer_of(TraceSettings()) is None
    backend, parent = Backend(), Parent()
    async with all_served((backend,)):
        text = over(backend.url, more=OURS)
        spec = parse_configuration(text, "weighbridge.yaml", Path(".")).fleet
        gateway = Gateway(spec, build_replica, seed=1)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway)))
        async with serving(app, "on") as url, clients() as client:
            front = Front(url, gateway, client)
            await until(lambda: gateway.ready)
            told = await ask(front, parent)
    assert told["trace"] is None
    assert backend.headers[-1]["traceparent"] == parent.headers["traceparent"]
