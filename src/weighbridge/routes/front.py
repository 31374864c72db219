"""The OpenAI endpoint of routes: an ASGI application of its own, or a handler that a gateway calls."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from math import ceil
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from weighbridge.errors import BadInput, Refused
from weighbridge.routes.answer import Gathered
from weighbridge.routes.request import RoutedRequest, parse_request
from weighbridge.routes.router import HybridRouter, RoutedStream
from weighbridge.routes.side import Chunk
from weighbridge.ticket import TicketStore

log = logging.getLogger("weighbridge.routes")

MAX_BODY = 8 << 20
#: Events that are there at once, such as those held back, go out together, up to about this size in bytes.
LARGEST_WRITE = 32 << 10


class Unauthorised(Refused):
    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class Front:
    """Places each request of a route. `keys`: (secret, tenant); none: everybody may call."""

    def __init__(
        self,
        routers: Mapping[str, HybridRouter],
        tickets: TicketStore,
        keys: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.routers = routers
        self.tickets = tickets
        self._keys = keys

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions` for a route's name as the model."""
        try:
            tenant = self.tenant(request)
            body = _decode(await _read(request))
            name = body.get("model") if isinstance(body, dict) else None
            if name is None and len(self.routers) == 1:
                name = next(iter(self.routers))
            if not isinstance(name, str) or name not in self.routers:
                known = ", ".join(sorted(self.routers))
                raise BadInput(f"model: {name!r} is no route here; there is {known}", param="model")
            return self.answer(name, body, request.headers, tenant)
        except (BadInput, Refused) as error:
            return error_response(error)

    def answer(self, name: str, body: Any, headers: Mapping[str, str], tenant: str | None) -> Response:
        """A response that places the request when it is sent. Raises BadInput."""
        return RoutedAnswer(self.routers[name], parse_request(body, headers, tenant))

    def tenant(self, request: Request) -> str | None:
        """Whose key the request carries. Raises Unauthorised."""
        if not self._keys:
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
        for secret, tenant in self._keys:
            if hmac.compare_digest(given, secret.encode()):
                return tenant
        raise Unauthorised("the API key is missing or not known here; send Authorization: Bearer KEY")

    async def models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "owned_by": "weighbridge"} for name in sorted(self.routers)]
        return _json({"object": "list", "data": data})

    async def health(self, request: Request) -> Response:
        sides = {
            name: {"edge": router.edge.healthy, "cloud": router.cloud.healthy}
            for name, router in self.routers.items()
        }
        return _json({"status": "ok", "routes": sides})

    async def recent(self, request: Request) -> Response:
        return self._guarded(request, lambda tenant: self._recent(request, tenant))

    async def ticket(self, request: Request) -> Response:
        return self._guarded(request, lambda tenant: self._ticket(request.path_params["ticket"], tenant))

    def _guarded(self, request: Request, call: Any) -> Response:
        try:
            return _json(call(self.tenant(request)))
        except (BadInput, Refused) as error:
            return error_response(error)

    def _recent(self, request: Request, tenant: str | None) -> Any:
        limit = request.query_params.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise BadInput("limit: must be a number from 1 to 1000", param="limit")
        tickets = [one for one in self.tickets.recent(int(limit)) if tenant in (None, one.tenant)]
        return {"object": "list", "data": [one.as_dict() for one in tickets]}

    def _ticket(self, name: str, tenant: str | None) -> Any:
        found = self.tickets.get(name)
        if found is None or tenant not in (None, found.tenant):
            raise _NotFound(f"no ticket {name!r}; old tickets make room for new ones")
        return found.as_dict()


class _NotFound(Refused):
    status, kind, code = 404, "invalid_request_error", "ticket_not_found"


def create_app(front: Front) -> Starlette:
    """All routes over one front. It closes the sides when it ends."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for router in front.routers.values():
            await router.close()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", front.chat, methods=["POST"]),
            Route("/v1/models", front.models),
            Route("/health", front.health),
            Route("/v1/tickets", front.recent),
            Route("/v1/tickets/{ticket}", front.ticket),
        ],
        lifespan=lifespan,
    )


class RoutedAnswer(Response):
    """Places a request and writes its answer, until the client goes away; then everything is cancelled."""

    def __init__(self, router: HybridRouter, request: RoutedRequest) -> None:
        self._router = router
        self._request = request
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._serve(scope, receive, send))
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = work.done()
            for task in (work, watch):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task
        if ended:
            work.result()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            stream = await self._router.open(self._request)
        except (BadInput, Refused) as error:
            await error_response(error)(scope, receive, send)
            return
        except Exception:
            log.exception("a request to the route %s failed", self._router.settings.name)
            await error_response(_Unforeseen())(scope, receive, send)
            return
        try:
            await (self._stream(stream, send) if self._request.stream else self._whole(stream, send))
        finally:
            await stream.close()

    async def _whole(self, stream: RoutedStream, send: Send) -> None:
        gathered = Gathered()
        async for chunk in stream:
            gathered.add(chunk)
        body = msgspec.json.encode(
            gathered.whole(stream.ticket.model, bool(self._request.body.get("logprobs")))
        )
        await stream.close()
        headers = _headers(stream, "application/json")
        headers += [
            (b"content-length", str(len(body)).encode()),
            (b"x-weighbridge-cost", f"{stream.ticket.cost_usd:.9f}".encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, stream: RoutedStream, send: Send) -> None:
        """Server-sent events. The usage chunk carries the ticket and the cost, where usage was asked for."""
        headers = [*_headers(stream, "text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        tail, ready = b"data: [DONE]\n\n", b""
        try:
            async for chunk in stream:
                ready += self._event(stream, chunk)
                if ready and (not stream.is_behind or len(ready) > LARGEST_WRITE):
                    await send({"type": "http.response.body", "body": ready, "more_body": True})
                    ready = b""
        except Refused as error:
            tail = b"data: " + _error_body(error) + b"\n\n"
        await send({"type": "http.response.body", "body": ready + tail})

    def _event(self, stream: RoutedStream, chunk: Chunk) -> bytes:
        if chunk.get("usage") and not chunk.get("choices"):
            if not self._request.include_usage:
                return b""
            chunk["weighbridge"] = {"ticket": stream.ticket.id, "cost_usd": round(stream.cost_usd, 9)}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


class _Unforeseen(Refused):
    status, kind, code = 500, "server_error", None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__("the route failed on this request; its log says why")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(stream: RoutedStream, media: str) -> list[tuple[bytes, bytes]]:
    ticket = stream.ticket
    return [
        (b"x-weighbridge-ticket", ticket.id.encode()),
        (b"x-weighbridge-replica", ticket.replica.encode("latin-1", "replace")),
        (b"x-weighbridge-placement", str(ticket.placement).encode()),
        (b"x-weighbridge-degraded", b"true" if ticket.degraded else b"false"),
        (b"content-type", media.encode()),
    ]


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                raise BadInput(f"the request body is larger than the {MAX_BODY} bytes this server takes")
            parts.append(part)
    except ClientDisconnect:
        raise BadInput("the connection closed before the body was complete") from None
    return b"".join(parts)


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the request body is not valid JSON: {error}") from error


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error_body(error: BadInput | Refused) -> bytes:
    kind = error.kind if isinstance(error, Refused) else "invalid_request_error"
    code = error.code if isinstance(error, Refused) else None
    param = error.param if isinstance(error, BadInput) else None
    return msgspec.json.encode({"error": {"message": str(error), "type": kind, "param": param, "code": code}})


def error_response(error: BadInput | Refused) -> Response:
    """OpenAI's error body."""
    status = error.status if isinstance(error, Refused) else 400
    answer = Response(_error_body(error), status, media_type="application/json")
    if isinstance(error, Refused) and error.retry_after is not None:
        answer.headers["retry-after"] = str(max(1, ceil(error.retry_after)))
    return answer
