"""`GET /v1/usage`: what was used and what it cost, by day or month, tenant and model."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.errors import BadInput
from weighbridge.routes.ledger.books import KEPT_DAYS
from weighbridge.routes.ledger.usage import UsageQuery, UsageRow
from weighbridge.server.endpoint import HttpService, json_response
from weighbridge.state.database import reason
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.identity.callers import peer_of

#: Rows of one answer at most; `offset` asks for those behind.
MOST_ROWS = 10_000
#: Who may wait for the ledger at one time.
MOST_ASKED = 16
_KNOWN = ("from", "to", "day", "month", "by", "tenant", "model", "limit", "offset")
_DAY = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")
_MONTH = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])")


class UsageEndpoint:
    """A tenant sees its own; the operator, watchers, and everybody where callers need not be known, all."""

    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._asked = 0  # how many wait for it

    async def usage(self, request: Request) -> Response:
        """Answer with the rows that are asked for, and their sum."""
        query = await self._query(request)
        keeper = self._service.usage
        try:
            rows, first = await self._looked_up(query)
        except (sqlite3.Error, BadInput) as error:
            why = reason(error) if isinstance(error, sqlite3.Error) else "it is of another version"
            message = f"the ledger cannot be read now: {why}"
            raise ApiError(503, message, kind="server_error", code="ledger_failed") from error
        more = len(rows) == query.limit
        told = {
            "object": "list",
            "by": "month" if query.by_month else "day",
            "zone": keeper.ledger.zone,
            "kept_days": KEPT_DAYS,
            "first_day": first or None,
            "has_more": more,
            "data": [row_of(row, query.by_month) for row in rows],
        }
        return json_response(told)

    async def _looked_up(self, query: UsageQuery) -> tuple[list[UsageRow], str]:
        """What the keeper has, from a thread of its own: names of hosts are looked up in those that all share."""
        if self._asked >= MOST_ASKED:
            message = "the ledger is being read for others; try again in a moment"
            raise ApiError(503, message, kind="server_error", code="ledger_busy", retry_after=1.0)
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._service.usage.rows, query
            )
        finally:
            self._asked -= 1

    async def _query(self, request: Request) -> UsageQuery:
        asked = request.query_params
        if unknown := next((name for name in asked if name not in _KNOWN), None):
            raise ApiError(400, f"{unknown[:40]}: is not known; use {', '.join(_KNOWN)}", param=unknown[:40])
        own = await self._own(request)
        if own is not None and asked.get("tenant", own) != own:
            message = "this key's tenant sees its own usage; send the operator's key for that of others"
            raise ApiError(403, message, kind="permission_error", code="figures_of_others", param="tenant")
        first, last = _days(asked.get("from"), asked.get("to"), asked.get("day"), asked.get("month"))
        by = asked.get("by", "day")
        if by not in ("day", "month"):
            raise ApiError(400, f"by: {by[:40]!r} is not known; use day or month", param="by")
        return UsageQuery(
            first,
            last,
            by == "month",
            own if own is not None else asked.get("tenant"),
            asked.get("model"),
            _count(asked.get("limit", str(MOST_ROWS)), "limit", 1, MOST_ROWS),
            _count(asked.get("offset", "0"), "offset", 0, 10**9),
            hides=own is not None,
        )

    async def _own(self, request: Request) -> str | None:
        """The tenant whose usage alone this caller may see; None for all. Raises ApiError 401."""
        headers, callers = headers_of(request.headers.raw), self._service.callers
        if callers.keys.is_admin(headers):
            return None
        caller = await callers.caller(headers, peer_of(request.scope))
        return None if caller is None or caller.is_watcher else caller.tenant


def row_of(row: UsageRow, by_month: bool) -> dict[str, Any]:
    """A row as JSON. Money is in whole nano-dollars, and in dollars for people."""
    fields = asdict(row)
    period = fields.pop("period")
    return {"month" if by_month else "day": period, **fields, "cost_usd": row.nano_usd / 1e9}


def _days(first: str | None, last: str | None, day: str | None, month: str | None) -> tuple[str, str]:
    """The first and the last day that are asked for, from whatever says so."""
    if sum([day is not None, month is not None, first is not None or last is not None]) > 1:
        raise ApiError(400, "give `day`, or `month`, or `from` and `to`", param="from")
    if month is not None:
        if not _MONTH.fullmatch(month):
            raise ApiError(400, f"month: {month[:40]!r} is no month; write it as 2026-11", param="month")
        return f"{month}-01", f"{month}-31"
    for name, value in (("day", day), ("from", first), ("to", last)):
        if value is not None and not _DAY.fullmatch(value):
            raise ApiError(400, f"{name}: {value[:40]!r} is no day; write it as 2026-11-30", param=name)
    return (day, day) if day is not None else (first or "", last or "")


def _count(text: str, name: str, least: int, most: int) -> int:
    if not (text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise ApiError(400, f"{name}: must be a number from {least} to {most}", param=name)
    return int(text)
