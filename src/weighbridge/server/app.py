"""The ASGI application: routes, error answers, and what every answer carries."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from weighbridge import __version__
from weighbridge.engine.api import Engine
from weighbridge.server.auth import tenant_of_key
from weighbridge.server.engine.api import Api
from weighbridge.server.engine.embeddings import EmbeddingRoutes
from weighbridge.server.engine.experts import ExpertRoutes
from weighbridge.server.engine.metrics import Metrics
from weighbridge.server.protocol import DetokenizeRequest, TokenizeRequest
from weighbridge.ticket import TicketStore
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError, as_api_error, error_response

log = logging.getLogger("weighbridge.server")

Endpoint = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def create_app(
    api: Api, metrics: Metrics, started: float, on_start: Callable[[], None] | None = None
) -> Starlette:
    """All routes over one engine. `started`: epoch seconds that models report as their creation time."""
    routes = Routes(api, metrics, int(started))
    embeddings, experts = EmbeddingRoutes(api), ExpertRoutes(api)

    def route(path: str, endpoint: Endpoint, method: str) -> Route:
        return Route(path, guarded(endpoint, path, metrics), methods=[method])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if on_start is not None:
            on_start()
        yield

    return Starlette(
        routes=[
            route("/", routes.console, "GET"),
            route("/health", routes.health, "GET"),
            route("/metrics", routes.metrics_page, "GET"),
            route("/v1/models", routes.models, "GET"),
            route("/v1/models/{model:path}", routes.model, "GET"),
            route("/v1/chat/completions", api.chat, "POST"),
            route("/v1/completions", api.completions, "POST"),
            route("/v1/embeddings", embeddings.create, "POST"),
            route("/tokenize", routes.tokenize, "POST"),
            route("/detokenize", routes.detokenize, "POST"),
            route("/v1/load", routes.load, "GET"),
            route("/v1/experts", experts.report, "GET"),
            route("/v1/experts/reset", experts.reset, "POST"),
            route("/v1/tickets", routes.recent_tickets, "GET"),
            route("/v1/tickets/{ticket}", routes.ticket, "GET"),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


def guarded(endpoint: Endpoint, path: str, metrics: Metrics) -> Endpoint:
    """Errors become OpenAI's error bodies; every answer is counted by route and status."""

    async def call(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except Exception as error:
            failure = as_api_error(error)
            if failure.status >= 500 and failure is not error:
                log.error("a request to %s failed", path, exc_info=error)
            response = error_response(failure)
        metrics.http_requests.labels(path, str(getattr(response, "status_code", 200))).inc()
        return response

    return call


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return error_response(
        ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    )


class Routes:
    """The endpoints beside the completions."""

    def __init__(self, api: Api, metrics: Metrics, created: int) -> None:
        self._api = api
        self._metrics = metrics
        self._created = created
        self._page = (files("weighbridge.server.engine") / "console.html").read_text(encoding="utf-8")

    @property
    def _engine(self) -> Engine:
        return self._api.engine

    @property
    def _tickets(self) -> TicketStore:
        return self._api.tickets

    async def console(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def health(self, request: Request) -> Response:
        draining = self._engine.load().draining
        status = "draining" if draining else "ok"
        return json_response({"status": status, "version": __version__}, 503 if draining else 200)

    async def metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        tenant_of_key(request, self._api.settings)
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        tenant_of_key(request, self._api.settings)
        name = request.path_params["model"]
        if name != self._engine.model_name:
            message = f"the model {name!r} does not exist here; this server has {self._engine.model_name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return json_response(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._engine.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "weighbridge",
            "max_model_len": self._engine.max_model_len,
        }

    async def tokenize(self, request: Request) -> Response:
        tenant_of_key(request, self._api.settings)
        body = decode(await read_body(request, self._api.settings.max_body), TokenizeRequest)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either `prompt` or `messages`", param="prompt")
        tokenizer = self._api.tokenizer
        if body.prompt is not None:
            tokens = tokenizer.encode(body.prompt, body.add_special_tokens)
        else:
            tokens = tokenizer.encode_chat(body.messages or [])
        return json_response(
            {"tokens": tokens, "count": len(tokens), "max_model_len": self._engine.max_model_len}
        )

    async def detokenize(self, request: Request) -> Response:
        tenant_of_key(request, self._api.settings)
        body = decode(await read_body(request, self._api.settings.max_body), DetokenizeRequest)
        for token in body.tokens:
            if token >= self._api.tokenizer.vocab_size:
                last = self._api.tokenizer.vocab_size - 1
                raise ApiError(400, f"tokens: {token} is not in the vocabulary (0 to {last})", param="tokens")
        return json_response({"prompt": self._api.tokenizer.decode(body.tokens, skip_special_tokens=False)})

    async def load(self, request: Request) -> Response:
        return json_response(asdict(self._engine.load()))

    async def recent_tickets(self, request: Request) -> Response:
        tenant = tenant_of_key(request, self._api.settings)
        limit = request.query_params.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise ApiError(400, "limit: must be a number from 1 to 1000", param="limit")
        tickets = [one for one in self._tickets.recent(int(limit)) if tenant in (None, one.tenant)]
        return json_response({"object": "list", "data": [one.as_dict() for one in tickets]})

    async def ticket(self, request: Request) -> Response:
        tenant = tenant_of_key(request, self._api.settings)
        name = request.path_params["ticket"]
        found = self._tickets.get(name)
        if found is None or tenant not in (None, found.tenant):
            raise ApiError(
                404, f"no ticket {name!r}; old tickets make room for new ones", code="ticket_not_found"
            )
        return json_response(found.as_dict())
