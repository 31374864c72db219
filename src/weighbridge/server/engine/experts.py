"""Experts over HTTP: `/v1/experts` reports, `/v1/experts/reset` begins a new window, `/metrics` sums up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.engine.api import Engine
from weighbridge.server.endpoint import json_response
from weighbridge.wire.errors import ApiError

if TYPE_CHECKING:  # it imports torch, which a gateway or a simulated replica does not need
    from weighbridge.engine.experts.telemetry import ExpertTelemetry

#: Models with more (layer, expert) pairs are summed up by layer in the metrics; `/v1/experts` has all of them.
MOST_SERIES = 1024


def telemetry_of(engine: Engine) -> ExpertTelemetry | None:
    """None for a dense model, or an engine that does not compute here."""
    telemetry: ExpertTelemetry | None = getattr(engine, "experts", None)
    return telemetry


class ExpertEndpoints:
    """The endpoints. Both answer 404 for a dense model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def report(self, request: Request) -> Response:
        flag = request.query_params.get("coactivation", "0")
        if flag not in ("0", "1", "true", "false"):
            raise ApiError(400, "coactivation: must be 0 or 1", param="coactivation")
        return json_response(await asyncio.to_thread(self._telemetry().report, flag in ("1", "true")))

    async def reset(self, request: Request) -> Response:
        self._telemetry().reset()
        return json_response({"object": "experts.reset"})

    def _telemetry(self) -> ExpertTelemetry:
        telemetry = telemetry_of(self._engine)
        if telemetry is None:
            name = self._engine.model_name
            raise ApiError(404, f"{name!r} is a dense model: it has no experts", code="no_experts")
        return telemetry


class ExpertCollector(Collector):  # type: ignore[misc]  # the library has no types
    """Metrics of the experts, made when `/metrics` is asked for."""

    def __init__(self, telemetry: ExpertTelemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        report = self._telemetry.report(coverage=False)
        touched = GaugeMetricFamily(
            "weighbridge_experts_touched_per_step", "Distinct (layer, expert) pairs a step touches"
        )
        touched.add_metric([], report["touched_per_step"])
        yield touched
        for name, text in {
            "balancedness": "Mean over maximum of the tokens per expert",
            "top20_share": "Share of the tokens that the busiest fifth of the experts take",
            "entropy_bits": "Entropy of the choice of expert",
        }.items():
            gauge = GaugeMetricFamily(f"weighbridge_expert_{name}", text, labels=["layer"])
            for layer in report["layers"]:
                gauge.add_metric([str(layer["layer"])], layer[name])
            yield gauge
        if len(report["layers"]) * report["experts"] <= MOST_SERIES:
            yield self._tokens(report["layers"])
        cache = report.get("cache")
        if cache is not None:
            yield from self._cache(cache)

    def _tokens(self, layers: list[dict[str, list[int]]]) -> Metric:
        tokens = CounterMetricFamily(
            "weighbridge_expert_tokens", "Tokens per expert", labels=["layer", "expert", "phase"]
        )
        for layer in layers:
            for phase in ("decode", "prefill"):
                for expert, count in enumerate(layer[f"{phase}_tokens"]):
                    tokens.add_metric([str(layer["layer"]), str(expert), phase], count)
        return tokens

    def _cache(self, cache: dict[str, float]) -> Iterator[Metric]:
        for name, text in {
            "hits": "Experts found resident",
            "misses": "Experts that were not resident",
            "prefetched": "Misses that a prefetch had already loaded",
            "lru_hits": "What a plain LRU of the same size would have hit",
            "loaded_bytes": "Bytes read from the mapped file",
        }.items():
            counter = CounterMetricFamily(f"weighbridge_expert_cache_{name}", text)
            counter.add_metric([], cache[name])
            yield counter
        for name, text in {
            "hit_rate": "Hits over all uses of an expert",
            "resident_bytes": "Bytes of experts in memory",
        }.items():
            gauge = GaugeMetricFamily(f"weighbridge_expert_cache_{name}", text)
            gauge.add_metric([], cache[name])
            yield gauge
