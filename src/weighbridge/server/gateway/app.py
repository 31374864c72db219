"""The gateway's ASGI application: a raw fast path for completions, plain routes for everything else."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from weighbridge import __version__
from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway, UnknownModel
from weighbridge.server.gateway.admin import Admin, json_response
from weighbridge.server.gateway.answer import Relays
from weighbridge.server.gateway.keys import Keys
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.request import PATHS, created, headers_of, read_all, read_ask
from weighbridge.wire.errors import ApiError, as_api_error, error_response

if TYPE_CHECKING:  # most gateways have no routes, and need not load what routes need
    from weighbridge.server.gateway.routes import GatewayRoutes

log = logging.getLogger("weighbridge.server")

Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Receive, Send], Awaitable[int]]


class GatewayApp:
    """ASGI. Completions never meet a framework: body in, bytes through, headers out."""

    def __init__(
        self,
        gateway: Gateway,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        hybrid: GatewayRoutes | None = None,
    ) -> None:
        """`routes`: routes between models, addressed as models themselves."""
        self._gateway = gateway
        self._metrics = metrics
        self._clock = clock
        self._hybrid = hybrid
        self._keys = Keys(gateway.spec)
        self._relays = Relays(gateway, clock)
        routes = Routes(gateway, metrics, self._keys, hybrid.names if hybrid is not None else [])
        self._rest = _rest_of(routes, Admin(gateway, self._keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in PATHS and scope["method"] == "POST":
            await self._complete(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            headers = headers_of(scope["headers"])
            tenant = self._keys.tenant(headers)
            body = await read_all(receive, headers.get("content-length", "0"), self._gateway.spec.max_body)
            hybrid = self._hybrid
            if hybrid is not None and (route := hybrid.named(body)) is not None:
                answer = partial(hybrid.answer, hybrid.response(route, path, body, headers, tenant), scope)
                await self._finish(path, answer, receive, send)
                return
            ask = read_ask(path, body, headers, tenant, self._clock())
            if tenant is None and len(self._gateway.pools) == 1 and not ask.model:
                ask.model = next(iter(self._gateway.pools))
            self._gateway.pool(ask.model)
        except Exception as error:
            failure = _as_api_error(error)
            if failure.status >= 500:
                log.error("a request to %s failed", path, exc_info=error)
            await error_response(failure)(scope, receive, send)
            self._metrics.answered(path, failure.status)
            return
        await self._finish(path, partial(self._relays.answer, ask), receive, send)

    async def _finish(self, path: str, answer: Answer, receive: Receive, send: Send) -> None:
        """Write an answer; nothing that happens to it leaves this place but its status."""
        status = 500
        try:
            status = await answer(receive, send)
        except Exception:
            log.exception("a request to %s failed", path)
        finally:
            self._metrics.answered(path, status)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._gateway.start()
        self._relays.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._relays.stop()
        if self._hybrid is not None:
            await self._hybrid.close()
        await self._gateway.close()
        await send({"type": "lifespan.shutdown.complete"})


class Routes:
    """What is asked beside completions."""

    def __init__(self, gateway: Gateway, metrics: GatewayMetrics, keys: Keys, routes: list[str]) -> None:
        self._gateway = gateway
        self._routes = routes
        self._metrics = metrics
        self._keys = keys
        self._created = created()
        self._page = (files("weighbridge.server.gateway") / "console.html").read_text(encoding="utf-8")

    async def console(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def health(self, request: Request) -> Response:
        """200 while every model can be served; load balancers in front stop sending otherwise."""
        gateway = self._gateway
        status = (
            "draining" if gateway.draining else "ok" if gateway.ready else "no replica is up for some model"
        )
        return json_response({"status": status, "version": __version__}, 200 if status == "ok" else 503)

    async def metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), media_type="text/plain; version=0.0.4")

    async def load(self, request: Request) -> Response:
        return json_response(self._gateway.load())

    async def models(self, request: Request) -> Response:
        self._tenant(request)
        names = [
            name for pool in self._gateway.pools.values() for name in (pool.spec.name, *pool.spec.aliases)
        ]
        names += self._routes
        return json_response({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        self._tenant(request)
        return json_response(self._model(request.path_params["model"]))

    def _model(self, name: str) -> dict[str, object]:
        longest = None if name in self._routes else self._gateway.pool(name).longest_context()
        fields = {"id": name, "object": "model", "created": self._created, "owned_by": "weighbridge"}
        return fields if longest is None else {**fields, "max_model_len": longest}

    async def recent_tickets(self, request: Request) -> Response:
        tenant = self._tenant(request)
        limit = request.query_params.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise ApiError(400, "limit: must be a number from 1 to 1000", param="limit")
        tickets = [one for one in self._gateway.tickets.recent(int(limit)) if tenant in (None, one.tenant)]
        return json_response({"object": "list", "data": [one.as_dict() for one in tickets]})

    async def ticket(self, request: Request) -> Response:
        tenant = self._tenant(request)
        name = request.path_params["ticket"]
        found = self._gateway.tickets.get(name)
        if found is None or tenant not in (None, found.tenant):
            message = f"no ticket {name!r}; old tickets make room for new ones"
            raise ApiError(404, message, code="ticket_not_found")
        return json_response(found.as_dict())

    def _tenant(self, request: Request) -> str | None:
        return self._keys.tenant(headers_of(request.headers.raw))


def _rest_of(routes: Routes, admin: Admin) -> Starlette:
    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, _guarded(endpoint, path), methods=[method])

    return Starlette(
        routes=[
            route("/", routes.console),
            route("/health", routes.health),
            route("/metrics", routes.metrics_page),
            route("/v1/load", routes.load),
            route("/v1/models", routes.models),
            route("/v1/models/{model:path}", routes.model),
            route("/v1/tickets", routes.recent_tickets),
            route("/v1/tickets/{ticket}", routes.ticket),
            route("/admin/replicas", admin.replicas),
            route("/admin/replicas", admin.add, "POST"),
            route("/admin/replicas/{replica}", admin.remove, "DELETE"),
            route("/admin/replicas/{replica}/drain", admin.drain, "POST"),
            route("/admin/replicas/{replica}/undrain", admin.undrain, "POST"),
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _guarded(endpoint: Endpoint, path: str) -> Endpoint:
    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            failure = _as_api_error(error)
            if failure.status >= 500 and failure is not error:
                log.error("a request to %s failed", path, exc_info=error)
            return error_response(failure)

    return call


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, UnknownModel):
        status = 404 if "does not exist" in str(error) else 400
        return ApiError(status, str(error), code="model_not_found" if status == 404 else None, param="model")
    return as_api_error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    code = "not_found" if error.status_code == 404 else None
    return error_response(ApiError(error.status_code, message, code=code))


__all__ = ["BadInput", "GatewayApp"]
