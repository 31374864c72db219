"""Runs as OpenTelemetry spans. Needs the extra `otel`, which is imported when the first run is exported."""

from __future__ import annotations

import time
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.flow.bets.guess import BetRecord
from weighbridge.flow.hooks import Hook, RunView, StepSpan
from weighbridge.flow.report.record import Record


class Telemetry(Hook):
    """Exports each run once it has ended: `@flow(hooks=[Telemetry()])`."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    def ended(self, run: RunView) -> None:
        record = run.hook(Record)
        if record is not None:
            export_spans(record, self._tracer)


def export_spans(record: Record, tracer: Any = None) -> None:
    """Export one span for the flow, one under it per execution, and an event per bet.

    `tracer`: an OpenTelemetry tracer; by default the global provider's. Call it once the run has ended: the
    spans get the times the run had. Raises BadInput when OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.trace import Status, StatusCode
    except ImportError as error:
        raise BadInput("OpenTelemetry is not installed; pip install 'weighbridge[otel]'") from error
    tracer = tracer or trace.get_tracer("weighbridge.flow")
    began = time.time() - record.seconds

    def at(seconds: float) -> int:
        return int((began + seconds) * 1e9)

    root = tracer.start_span(record.flow, start_time=at(0.0))
    root.set_attributes({"flow.run": record.run_id, "flow.mode": record.mode, "flow.usd": record.usd})
    for bet in record.bets:
        root.add_event("bet", _facts_of_bet(bet), timestamp=at(bet.placed))
    within = trace.set_span_in_context(root)
    for span in record.spans:
        start = span.started if span.started is not None else span.called
        child = tracer.start_span(span.name, context=within, start_time=at(start))
        child.set_attributes(_facts_of_step(span))
        if span.error is not None:
            child.set_status(Status(StatusCode.ERROR, span.error))
        child.end(at(span.finished if span.finished is not None else record.seconds))
    if record.error is not None:
        root.set_status(Status(StatusCode.ERROR, record.error))
    root.end(at(record.seconds))


def _facts_of_bet(bet: BetRecord) -> dict[str, Any]:
    return {"site": bet.site, "prediction": bet.prediction, "outcome": bet.outcome, "why": str(bet.verdict)}


def _facts_of_step(span: StepSpan) -> dict[str, Any]:
    return {
        "step.effect": span.effect,
        "step.status": span.status,
        "step.bet": span.bet,
        "step.usd": span.usd,
    }
