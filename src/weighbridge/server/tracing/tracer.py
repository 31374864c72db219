"""Where a door begins and ends the trace of a request. Everything else happens later, on the exporter's thread."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector as MetricCollector

from weighbridge.fleet.config.tracing import TraceSettings
from weighbridge.server.tracing.exporter import Exporter
from weighbridge.server.tracing.settings import Sampling, export_settings
from weighbridge.server.tracing.spans import Served
from weighbridge.ticket.span import SpanName, new_span_id, new_trace_id, read_parent
from weighbridge.ticket.trace import Trace

#: Seconds that a server which ends gives the last traces.
LAST_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Tracer:
    """`by_engine`: requests are computed where they are traced, instead of being passed on."""

    sampling: Sampling
    exporter: Exporter
    by_engine: bool = False
    clock: Callable[[], float] = time.time

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """The trace of a request that has just come in: that of its caller, or a new one."""
        parent = read_parent(headers)
        trace_id = new_trace_id() if parent is None else parent.trace_id
        if parent is not None and self.sampling.heeds_parent:
            sampled = parent.sampled
        else:
            sampled = is_taken(trace_id, self.sampling.ratio)
        above, state = ("", "") if parent is None else (parent.span_id, parent.state)
        return Trace(SpanName(trace_id, new_span_id(), above, sampled, state), self.clock())

    def end(self, trace: Trace, served: Served) -> None:
        """Note that a request was answered."""
        if trace.span.sampled:
            self.exporter.put(served)

    def at_engine(self) -> Tracer:
        """The same for an engine in this process."""
        return replace(self, by_engine=True)

    async def start(self) -> None:
        self.exporter.start()

    async def close(self) -> None:
        await asyncio.to_thread(self.exporter.close, LAST_SECONDS)


def is_taken(trace_id: str, ratio: float) -> bool:
    """Whether a trace is among a share of all: the same wherever it is asked, as its id decides."""
    return int(trace_id[16:], 16) < round(ratio * (1 << 64))


def tracer_of(settings: TraceSettings, *, by_engine: bool = False) -> Tracer | None:
    """What traces the requests of a server; None where that is not wanted. Raises BadInput."""
    wanted = export_settings(settings, os.environ)
    return None if wanted is None else Tracer(wanted.sampling, Exporter(wanted), by_engine)


class TraceMetrics(MetricCollector):  # type: ignore[misc]  # the library has no types
    """What became of traces, for `/metrics`."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "weighbridge_traces", "Traced requests by what became of their spans", labels=["outcome"]
        )
        counts = self._exporter.counts
        for outcome in ("sent", "dropped", "failed"):
            family.add_metric([outcome], getattr(counts, outcome))
        yield family


class Traceable(Protocol):
    """A service whose door may trace."""

    tracer: Tracer | None


class Registry(Protocol):
    """Metrics that can be told of something else."""

    def register(self, collector: MetricCollector) -> None: ...


def trace(service: Traceable, metrics: Registry, tracer: Tracer | None) -> None:
    """Have a service's requests traced, if a tracer is there; before its door is made."""
    if tracer is not None:
        service.tracer = tracer
        metrics.register(TraceMetrics(tracer.exporter))
