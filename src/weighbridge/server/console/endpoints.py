"""What the console asks of its server: who the reader is, what is going on, and answers as pages show them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from weighbridge import __version__
from weighbridge.engine.request import SPARE_CLASS
from weighbridge.server.console.assets import HEADERS, Assets
from weighbridge.server.console.markdown import LONGEST_TEXT, MarkdownText, rendered
from weighbridge.server.console.recorder import Recorder
from weighbridge.server.console.whatif import WhatIfEndpoints
from weighbridge.server.endpoint import Audience, Endpoint, HttpService, json_response
from weighbridge.server.watching.history import GOOD_ITL_S, GOOD_TTFT_S, ITERATION_FIELDS
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.identity.callers import Visitor, peer_of

#: Lines of the queue that are told one by one: the longest; the rest is one line.
MOST_LINES = 40
#: Texts that may wait to be rendered.
MOST_TEXTS = 16
#: Bytes of a request for it.
_LONGEST_BODY = 6 * LONGEST_TEXT + 100


class ConsoleEndpoints:
    """The pages of one service, and what they show."""

    def __init__(self, service: HttpService, recorder: Recorder) -> None:
        self._service = service
        self._recorder = recorder
        self._assets = Assets()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="markdown")
        self._texts = 0

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/", self._assets.shell, Audience.ALL),
            Endpoint("GET", "/console/{asset}", self._assets.asset, Audience.ALL),
            Endpoint("GET", "/console/api/session", self.session, Audience.ALL),
            Endpoint("GET", "/console/api/now", self.now, Audience.VISITORS),
            Endpoint("POST", "/console/api/markdown", self.markdown, Audience.VISITORS),
            *WhatIfEndpoints(self._service).endpoints(),
        ]

    async def session(self, request: Request) -> Response:
        """Who asks, as far as can be told, and what is open to them. It answers everybody, also with a wrong key."""
        service, headers = self._service, headers_of(request.headers.raw)
        callers = service.callers
        is_operator = callers.keys.is_admin(headers)
        problem = ""
        try:
            visitor: Visitor | None = await callers.visitor(headers, peer_of(request.scope))
        except ApiError as error:
            visitor, problem = None, str(error)
        caller = visitor.caller if visitor is not None else None
        asks = not callers.are_asked or caller is not None
        told = {
            "version": __version__,
            "kind": service.seen.kind,
            "keys_are_asked": callers.are_asked,
            "has_operator": callers.keys.has_admin,
            "role": _role(is_operator, visitor, callers.are_asked),
            "tenant": caller.tenant if caller is not None else None,
            "problem": problem if request.headers.get("authorization") else "",
            "may": {
                "look": visitor is not None,
                "see_all": visitor is not None and visitor.sees_all,
                "read_tickets": asks or is_operator,
                "ask": asks,
                "change": is_operator and service.seen.kind != "engine",
                "see_experts": visitor is not None and visitor.sees_all and service.seen.has_experts,
                "reset": is_operator or not callers.are_asked,
            },
            "models_of_replicas": service.seen.models() if visitor is not None and visitor.sees_all else [],
            "models": self._models() if asks else [],
        }
        return _private(told)

    def _models(self) -> list[dict[str, Any]]:
        routes = {route["name"] for route in self._service.seen.routes()}
        return [{**model, "is_route": model["id"] in routes} for model in self._service.models()]

    async def now(self, request: Request) -> Response:
        """What is going on, and the seconds and iterations that the asker has not seen yet."""
        visitor: Visitor = request.state.visitor
        service, seen, asked = self._service, self._service.seen, request.query_params
        sees_all = visitor.sees_all
        status, health = service.health()
        told: dict[str, Any] = {
            "at": time.time(),
            "began": self._recorder.began,
            "status": health["status"],
            "ready": status == 200,
            "sees_all": sees_all,
            "load": service.load(sees_all),
            "history": seen.history.told(_number(asked.get("since"), "since"), only_levels=not sees_all),
            "targets": {"ttft_ms": GOOD_TTFT_S * 1e3, "itl_ms": GOOD_ITL_S * 1e3},
        }
        if sees_all:
            told["queue"] = queue_lines(seen.waiting())
            told["routes"] = seen.routes()
            if seen.iterations is not None:
                rows = seen.iterations.since(_number(asked.get("iteration"), "iteration"))
                told["iterations"] = {"fields": ITERATION_FIELDS, "rows": rows}
        return _private(told)

    async def markdown(self, request: Request) -> Response:
        """A text as HTML that may stand in a page."""
        body = await read_body(request.receive, headers_of(request.headers.raw), _LONGEST_BODY)
        try:
            asked = decode(body, MarkdownText)
        except ApiError as error:
            raise ApiError(400, f"text: must be a JSON string: {error}", param="text") from error
        if self._texts >= MOST_TEXTS:
            message = "too many texts wait to be rendered; try again in a moment"
            raise ApiError(503, message, kind="server_error", code="busy", retry_after=1.0)
        self._texts += 1
        try:
            html = await asyncio.get_running_loop().run_in_executor(self._thread, rendered, asked.text)
        finally:
            self._texts -= 1
        return _private({"html": html})


def _private(told: Mapping[str, Any]) -> Response:
    """An answer for one reader, which no cache keeps and no browser takes for a page."""
    response = json_response(told)
    response.headers.update({**HEADERS, "cache-control": "no-store"})
    return response


def _role(is_operator: bool, visitor: Visitor | None, are_asked: bool) -> str:
    if is_operator:
        return "operator"
    if not are_asked:
        return "anyone"
    if visitor is None:
        return "nobody"
    if visitor.caller is None:
        return "looker"
    return "watcher" if visitor.caller.is_watcher else "tenant"


def _number(text: str | None, name: str) -> int:
    if text is None:
        return 0
    if not (text.isdecimal() and len(text) <= 15):
        raise ApiError(400, f"{name}: must be a whole number of at most 15 digits", param=name)
    return int(text)


def queue_lines(waiting: Mapping[tuple[int, str], tuple[int, int]]) -> list[dict[str, Any]]:
    """What waits as lines, the most urgent class first and in it the most tokens; what is too much is one line."""
    longest = sorted(waiting.items(), key=lambda item: -item[1][1])
    shown, rest = longest[:MOST_LINES], longest[MOST_LINES:]
    lines = [
        {"class": key[0], "kind": _kind(key[0]), "tenant": key[1], "requests": count, "tokens": tokens}
        for key, (count, tokens) in sorted(shown, key=lambda item: (item[0][0], -item[1][1]))
    ]
    if rest:
        count, tokens = sum(one[1][0] for one in rest), sum(one[1][1] for one in rest)
        lines.append({"class": None, "kind": "", "tenant": None, "requests": count, "tokens": tokens})
    return lines


def _kind(priority: int) -> str:
    """What a class is for, where it has a name."""
    if priority > SPARE_CLASS:
        return "speculative"
    return "batch" if priority == SPARE_CLASS else ""
