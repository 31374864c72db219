"""Questions before anything is bought: what another replica would have changed, and what of a model fits where."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.server.console.aside import Aside
from weighbridge.server.console.assets import HEADERS
from weighbridge.server.endpoint import Audience, Endpoint, HttpService, json_response
from weighbridge.server.watching.history import GOOD_ITL_S, GOOD_TTFT_S
from weighbridge.ticket import Leg, Ticket
from weighbridge.ticket.record import between
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of

#: Seconds of the past whose requests are run again, and the most of them: the latest.
PAST, MOST_REQUESTS = 600.0, 1000
#: Requests from which on a run says something.
FEWEST_REQUESTS = 5
_LONGEST_BODY = 1 << 13


class WhatIfAsked(Struct, forbid_unknown_fields=True):
    """`more`: replicas added, or taken away. `rate`: times as many requests a second as there were."""

    model: Annotated[str, Meta(max_length=200)] = ""
    more: Annotated[int, Meta(ge=-64, le=64)] = 1
    rate: Annotated[float, Meta(ge=0.05, le=20.0)] = 1.0
    ttft_ms: Annotated[float, Meta(gt=0.0, le=1e7)] = GOOD_TTFT_S * 1e3
    itl_ms: Annotated[float, Meta(gt=0.0, le=1e7)] = GOOD_ITL_S * 1e3


class NamedPlan(Struct):
    """The least that a plan is asked for by: without it no process is started. The rest is checked where it is read."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    device: Annotated[str, Meta(min_length=1, max_length=200)]


class WhatIfEndpoints:
    """Both are worked out in a process of its own."""

    def __init__(self, service: HttpService, aside: Aside | None = None) -> None:
        self._service = service
        self._aside = aside or Aside()
        self._catalogue: dict[str, Any] | None = None

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", "/console/api/simulate", self.simulate, Audience.WATCHERS),
            Endpoint("POST", "/console/api/plan", self.plan, Audience.VISITORS),
            Endpoint("GET", "/console/api/catalogue", self.catalogue, Audience.VISITORS),
        ]

    async def simulate(self, request: Request) -> Response:
        """The last minutes again, with the replicas there are and with others."""
        body = await read_body(request.receive, headers_of(request.headers.raw), _LONGEST_BODY)
        asked = decode(body or b"{}", WhatIfAsked)
        known = self._service.seen.known(asked.model)
        requests = self._came(known.model)
        if len(requests) < FEWEST_REQUESTS:
            message = (
                f"{len(requests)} requests for {known.model!r} have ended in the last {PAST / 60:.0f} minutes; it "
                f"takes {FEWEST_REQUESTS} to run them again. `weighbridge simulate` makes up requests of its own"
            )
            raise ApiError(409, message, code="too_few_requests")
        question = {
            "replicas": known.replicas,
            "requests": requests,
            "policy": known.policy,
            "more": asked.more,
            "rate": asked.rate,
            "ttft_s": asked.ttft_ms / 1e3,
            "tpot_s": asked.itl_ms / 1e3,
        }
        told = await self._aside.ask_for(request.receive, "simulate", msgspec.json.encode(question))
        more = {"model": known.model, "policy": known.policy, "skipped": known.skipped}
        return _private({**more, "requests": len(requests), "measured": _measured(requests), **told})

    def _came(self, model: str) -> list[dict[str, Any]]:
        """The latest requests for a model, as a simulation takes them, the oldest first."""
        since = time.time() - PAST
        found: list[tuple[Ticket | Leg, str]] = []
        for ticket in self._service.tickets.recent(4 * MOST_REQUESTS):
            if ticket.arrived < since or len(found) >= MOST_REQUESTS:
                break
            found += [(part, ticket.tenant) for part in _parts(ticket, model) if _is_told(part)]
        found.sort(key=lambda one: one[0].arrived)
        first = found[0][0].arrived if found else 0.0
        return [
            {
                "at": part.arrived - first,
                "prompt_tokens": part.prompt_tokens,
                "output_tokens": part.output_tokens,
                "cached_tokens": part.cached_tokens,
                "tenant": tenant,
                "ttft_s": None if part.first_token is None else between(part.arrived, part.first_token),
            }
            for part, tenant in found[-MOST_REQUESTS:]
        ]

    async def plan(self, request: Request) -> Response:
        """What of a model of the catalogue fits on devices of the catalogue, how fast it is and what it costs."""
        body = await read_body(request.receive, headers_of(request.headers.raw), _LONGEST_BODY)
        decode(body, NamedPlan)
        return _private(await self._aside.ask_for(request.receive, "plan", body))

    async def catalogue(self, request: Request) -> Response:
        """The names that a plan can be asked for."""
        if self._catalogue is None:
            self._catalogue = await self._aside.ask("catalogue", b"")
        return _private(self._catalogue)


def _is_told(part: Ticket | Leg) -> bool:
    """Whether it ended, and with an answer."""
    return part.finished is not None and part.output_tokens > 0 and part.arrived > 0


def _parts(ticket: Ticket, model: str) -> Iterator[Ticket | Leg]:
    if ticket.legs:
        yield from (leg for leg in ticket.legs if leg.model == model)
    elif ticket.model == model:
        yield ticket


def _measured(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What clients really waited, to hold the run beside: the middle and the 95th of a hundred first tokens."""
    waited = sorted(one["ttft_s"] * 1e3 for one in requests if one["ttft_s"] is not None)
    if not waited:
        return {"ttft_ms": None}
    last = len(waited) - 1
    return {"ttft_ms": {"p50": waited[last // 2], "p95": waited[round(last * 0.95)], "of": len(waited)}}


def _private(told: dict[str, Any]) -> Response:
    response = json_response(told)
    response.headers.update({**HEADERS, "cache-control": "no-store"})
    return response
