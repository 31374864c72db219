"""What an operator can set about distributed traces."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.knobs import knob
from weighbridge.wire.identity.settings import IdentitySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings(IdentitySettings):
    """Whether requests are traced, and where spans go. What is not said is read from OpenTelemetry's variables."""

    otlp_endpoint: str | None = knob(
        None,
        "Collector that gets a trace of each request by OTLP over HTTP, such as http://127.0.0.1:4318; "
        "none: OTEL_EXPORTER_OTLP_ENDPOINT, and where that is not set either no traces are made.",
    )
    trace_ratio: float | None = knob(
        None,
        "Share of requests that are traced, of those whose caller does not decide it; none: OTEL_TRACES_SAMPLER_ARG, "
        "else all.",
        min=0.0,
        max=1.0,
    )
