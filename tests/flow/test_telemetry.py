"""Runs as OpenTelemetry spans."""

from __future__ import annotations

import pytest

from weighbridge.flow import flow, step
from weighbridge.flow.telemetry import Telemetry, export_spans


def test_spans_are_exported() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    @step(effect="pure")
    async def think() -> int:
        return 1

    @flow
    async def body() -> int:
        return await think()

    body.run()
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert body.last is not None
    export_spans(body.last, provider.get_tracer("test"))
    assert [span.name.rsplit(".", 1)[-1] for span in exporter.get_finished_spans()] == ["think", "body"]


def test_a_hook_exports_every_run_by_itself() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    @step(effect="pure", name="think")
    async def think(n: int) -> float:
        return 1 / n

    @flow(hooks=[Telemetry(provider.get_tracer("test"))], name="body")
    async def body(n: int) -> float:
        return await think(n)

    body.run(1)
    with pytest.raises(ZeroDivisionError):
        body.run(0)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["think", "body", "think", "body"]
    assert [span.status.is_ok for span in spans] == [True, True, False, False]
