"""`GET /v1/tickets`: what was decided about requests, the newest first, and about one of them."""

from __future__ import annotations

import math
import time

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.server.endpoint import Audience, Endpoint, HttpService, json_response
from weighbridge.ticket.store import TicketFilter
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.identity.callers import peer_of

#: Characters of a filter.
_LONGEST = 500


class TicketEndpoints:
    """A tenant sees its own, without what is said behind this server; the operator, watchers, and everybody where
    callers need not be known, all."""

    def __init__(self, service: HttpService) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/v1/tickets", self.recent, Audience.ALL),
            Endpoint("GET", "/v1/tickets/{ticket}", self.one, Audience.ALL),
        ]

    async def recent(self, request: Request) -> Response:
        tenant, asked = await self._own(request), request.query_params
        limit = asked.get("limit", "100")
        if not (limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= 1000):
            raise ApiError(400, "limit: must be a number from 1 to 1000", param="limit")
        words = {name: _word(request, name) for name in ("model", "replica", "outcome", "search")}
        wanted = TicketFilter(
            tenant if tenant is not None else _word(request, "tenant") or None,
            slower_ms=_milliseconds(asked.get("slower_ms", "0")),
            now=time.time(),
            **words,
        )
        if tenant is not None and _word(request, "tenant") not in ("", tenant):
            return json_response({"object": "list", "data": []})
        tickets = self._service.tickets.recent(int(limit), wanted)
        return json_response(
            {"object": "list", "data": [ticket.as_dict(in_full=tenant is None) for ticket in tickets]}
        )

    async def one(self, request: Request) -> Response:
        tenant, name = await self._own(request), request.path_params["ticket"]
        ticket = self._service.tickets.get(name)
        if ticket is not None and tenant in (None, ticket.tenant):
            return json_response(ticket.as_dict(in_full=tenant is None))
        found = self._service.tickets.beginning(name, tenant)
        if len(found) != 1:
            message = f"no ticket {name!r}; old tickets make room for new ones"
            if found:
                message = f"several tickets begin with {name!r}; write more of it"
            raise ApiError(404, message, code="ticket_not_found")
        return json_response(found[0].as_dict(in_full=tenant is None))

    async def _own(self, request: Request) -> str | None:
        """The tenant whose tickets alone this caller may see; None: all. Raises ApiError 401."""
        headers, callers = headers_of(request.headers.raw), self._service.callers
        if callers.keys.is_admin(headers):
            return None
        caller = await callers.caller(headers, peer_of(request.scope))
        if caller is None or caller.is_watcher:
            return None
        return caller.named(None, headers)


def _word(request: Request, name: str) -> str:
    word = request.query_params.get(name, "")
    if len(word) > _LONGEST:
        raise ApiError(400, f"{name}: has more than {_LONGEST} characters", param=name)
    return word


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0.0):
        raise ApiError(
            400, "slower_ms: must be a number of milliseconds that is not negative", param="slower_ms"
        )
    return value
