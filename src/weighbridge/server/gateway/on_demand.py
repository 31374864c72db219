"""Loading and unloading models of a gateway by hand: `/v1/models/load` and `/v1/models/unload`, for operators."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.on_demand.occupancy import Occupant, Presence
from weighbridge.fleet.on_demand.residents import Residents
from weighbridge.server.endpoint import Audience, Endpoint, json_response
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError, told_plainly
from weighbridge.wire.headers import headers_of

#: Seconds for which a request may wait until what it asks for is so.
LONGEST_WAIT = 600.0
_LARGEST_BODY = 1 << 16


class ModelToMove(Struct, forbid_unknown_fields=True):
    """Which model, and for how many seconds the answer may wait until it is loaded, or unloaded."""

    model: Annotated[str, Meta(min_length=1)]
    wait_s: Annotated[float, Meta(ge=0.0, le=LONGEST_WAIT)] = 0.0


class ModelAdmin:
    def __init__(self, gateway: Gateway, residents: Residents | None) -> None:
        self._gateway = gateway
        self._residents = residents

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", "/v1/models/load", self.load, Audience.OPERATOR),
            Endpoint("POST", "/v1/models/unload", self.unload, Audience.OPERATOR),
        ]

    async def load(self, request: Request) -> Response:
        """Have a model loaded as if somebody asked it something; it may have to wait for room."""
        return await self._moved(request, lambda residents: residents.load)

    async def unload(self, request: Request) -> Response:
        """Have a model unloaded once what runs in it has ended."""
        return await self._moved(request, lambda residents: residents.unload)

    async def _moved(
        self, request: Request, move: Callable[[Residents], Callable[[str, float], Awaitable[Occupant]]]
    ) -> Response:
        body = await read_body(request.receive, headers_of(request.headers.raw), _LARGEST_BODY)
        asked = decode(body, ModelToMove)
        pool = self._gateway.pool(asked.model)
        if self._residents is None or pool.on_demand is None:
            message = f"{asked.model!r} is always loaded; models come and go where weighbridge.yaml has `on_demand:`"
            raise ApiError(400, message, code="not_on_demand", param="model")
        model = await move(self._residents)(pool.spec.name, asked.wait_s)
        return json_response(
            {"success": True, "model": asked.model, "status": status_of(model, self._gateway.clock())}
        )


class ResidentsCollector(Collector):  # type: ignore[misc]
    """What is true of each model that is loaded on demand, read at the moment of the scrape."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        models = self._residents.occupancy.models
        yield _family(GaugeMetricFamily, "loaded", "Whether it is in memory", [
            (one, one.presence is Presence.LOADED) for one in models
        ])  # fmt: skip
        yield _family(GaugeMetricFamily, "bytes", "What it takes there", [
            (one, one.needs.nbytes) for one in models
        ])  # fmt: skip
        yield _family(GaugeMetricFamily, "waiting_requests", "Requests that wait for it to be loaded", [
            (one, len(one.waiting)) for one in models
        ])  # fmt: skip
        yield _family(CounterMetricFamily, "loads", "Times that it was loaded", [
            (one, one.loads) for one in models
        ])  # fmt: skip
        yield _family(CounterMetricFamily, "unloads", "Times that it was unloaded", [
            (one, one.unloads) for one in models
        ])  # fmt: skip


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    values: Iterable[tuple[Occupant, float]],
) -> GaugeMetricFamily | CounterMetricFamily:
    family = kind(f"weighbridge_model_{name}", text, labels=["model"])
    for model, value in values:
        family.add_metric([model.name], value)
    return family


def status_of(model: Occupant, now: float) -> dict[str, Any]:
    """What `/v1/models` says of a model that is loaded on demand: `value` as llama-server has it, and why, or to those
    who do not run this server, under what name the log has the reason."""
    failed = model.failures > 0 and model.presence is Presence.UNLOADED
    told: dict[str, Any] = {
        "value": "failed" if failed else model.presence.value,
        "bytes": model.needs.nbytes,
    }
    if failed:
        told |= {"failed": True, "retry_in_s": round(max(model.retry_at - now, 0.0), 3)}
    if model.failure and model.presence is Presence.UNLOADED:
        told |= {"failure": model.failure_id} if told_plainly.get() else {"reason": model.failure}
    if model.presence is Presence.LOADED:
        told["loaded_for_s"] = round(now - model.loaded_at, 3)
        expires = model.expires_at()
        told["expires_in_s"] = None if expires == math.inf else round(max(expires - now, 0.0), 3)
        if model.closed_for is not None and model.closed_for != model.name:
            told["makes_room_for"] = model.closed_for
    return told | {
        "requests": len(model.inside),
        "waiting_requests": len(model.waiting),
        "waiting_tokens": round(sum(one.tokens for one in model.waiting.values())),
        "loads": model.loads,
        "load_s": round(model.load_s, 3) if model.loads else None,
        "keep": model.needs.keep,
    }
