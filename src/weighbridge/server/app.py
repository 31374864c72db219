"""The table of endpoints over a service, and the application that serves it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from weighbridge import __version__
from weighbridge.server.batches import Batches
from weighbridge.server.calibrated_decisions import CalibratedDecisions
from weighbridge.server.console.endpoints import ConsoleEndpoints
from weighbridge.server.console.recorder import Recorder
from weighbridge.server.console.tickets import TicketEndpoints
from weighbridge.server.decisions.store import CalibrationsKept
from weighbridge.server.door import Beside, Door
from weighbridge.server.endpoint import Audience, Endpoint, Handler, HttpService, json_response
from weighbridge.server.kept_responses import KeptResponses
from weighbridge.server.ollama import OllamaEndpoints
from weighbridge.server.openapi.document import ServedPath, document
from weighbridge.server.openapi.page import shown
from weighbridge.server.responses.keeper import ResponseKeeper
from weighbridge.server.streams import KeptStreams
from weighbridge.server.tokens import TokenEndpoints
from weighbridge.server.usage import UsageEndpoint
from weighbridge.wire.errors import ApiError, as_api_error, error_body, retry_after_header, told_plainly
from weighbridge.wire.headers import headers_of, request_id
from weighbridge.wire.identity.access import check_one_host, check_site
from weighbridge.wire.identity.callers import Visitor, peer_of
from weighbridge.wire.identity.cross_origin import Sites
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import PROTOCOLS
from weighbridge.wire.protocols.messages import listed, model_info
from weighbridge.wire.readers import whose

log = logging.getLogger("weighbridge.server")

_PLACES = "chats, completions, embeddings, Responses, Messages, Ollama's API, files and batches"
#: What clients ask for by other APIs' names and is not here, and what is in its place.
_ABSENT = {
    "/v1/moderations": (
        "moderation",
        "ask a model in a chat whose answer is held to a JSON schema, or let a route's rules keep personal data here",
    ),
    "/v1/audio": (
        "speech or transcription",
        "models that hear take `input_audio` parts in /v1/chat/completions",
    ),
    "/v1/images": ("making of pictures", "models that see take `image_url` parts in /v1/chat/completions"),
    "/v1/videos": ("making of films", f"there are {_PLACES}"),
    "/v1/realtime": ("speech to speech", "stream a chat with /v1/chat/completions or /v1/responses"),
    "/v1/responses/compact": (
        "compaction",
        "ask for a summary, and go on from it in a new `input`",
    ),
    "/v1/fine_tuning": ("training", "serve a model that was trained elsewhere by its path"),
    "/v1/assistants": ("assistants", "/v1/responses keeps turns with `previous_response_id`"),
    "/v1/threads": ("threads", "/v1/responses keeps turns with `previous_response_id`"),
    "/v1/conversations": ("conversations", "/v1/responses keeps turns with `previous_response_id`"),
    "/v1/vector_stores": ("search in files", "/v1/embeddings gives the vectors that a search of yours takes"),
    "/v1/uploads": ("uploading in parts", "send a file whole to /v1/files"),
    "/v1/messages/batches": ("Anthropic's batches", "/v1/batches takes lines for /v1/messages"),
}


def create_app(
    service: HttpService,
    *,
    protocols: Sequence[WireProtocol] = PROTOCOLS,
    beside: Sequence[Beside] = (),
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """Everything that is served over one service: the protocols, and the endpoints beside them. `beside`: what works as
    long as it is served."""
    kept = KeptResponses(service, ResponseKeeper(service.keeping, service.max_body))
    decisions = CalibratedDecisions(service, CalibrationsKept(service.keeping.decisions_file))
    remembering: dict[str, WireProtocol] = {kept.path: kept, decisions.path: decisions}
    protocols = [remembering.get(protocol.path, protocol) for protocol in protocols]
    batches = Batches(service, protocols, clock)
    streams = KeptStreams(service)
    common = CommonEndpoints(service, kept).endpoints()
    described = DocumentEndpoints(service, protocols)
    recorder = Recorder(service.seen)
    console = ConsoleEndpoints(service, recorder).endpoints()
    table = [
        *(*console, *common, *decisions.endpoints(), *batches.endpoints()),
        *(*streams.endpoints(), *service.endpoints()),
        *described.endpoints(),
    ]
    described.table = table
    routes = [Route(row.path, _guarded(row, service), methods=[row.method]) for row in table]
    routes += [Route(protocol.path, _only_post, methods=["POST"]) for protocol in protocols]
    speakers = {row.path: row.speaks for row in table} | {one.path: one for one in protocols}
    failing = partial(_http_error, speakers, routes)
    rest = Starlette(routes=routes, exception_handlers={HTTPException: failing})
    working: list[Beside] = [batches, streams, recorder, *beside]
    if service.tracer is not None:
        working.append(service.tracer)
    door = Door(service, rest, protocols=protocols, streams=streams, beside=working, clock=clock)
    return Sites(door, service.access)


async def _only_post(request: Request) -> Response:
    """Never reached: the door answers it. The row is there so that other methods get a 405."""
    raise HTTPException(405)


def _guarded(row: Endpoint, service: HttpService) -> Handler:
    """Keys are checked, errors become OpenAI's error bodies, and every answer is counted."""

    async def call(request: Request) -> Response:
        try:
            await admit_caller(row.audience, request, service)
            response = await row.handler(request)
        except Exception as error:
            failure = as_api_error(error)
            if failure.status == 500 and failure is not error:
                log.error("a request to %s failed", row.path, exc_info=error)
            response = error_response(failure, row.speaks)
        service.answered(row.path, response.status_code)
        return _with_id(request, response)

    return call


def _with_id(request: Request, response: Response) -> Response:
    """An answer that can be named: by the client's own word, else by ours."""
    response.headers["x-request-id"] = request_id(request.headers) or uuid.uuid4().hex
    return response


async def admit_caller(audience: Audience, request: Request, service: HttpService) -> None:
    """Check from where and by whom an endpoint is asked. Raises ApiError 400, 401 or 403."""
    headers, peer, callers = headers_of(request.headers.raw), peer_of(request.scope), service.callers
    if not callers.are_asked:
        check_site(service.access, request.scope["server"][0], headers)
    check_one_host(headers)
    request.state.tenant = None
    told_plainly.set(callers.are_asked and audience is not Audience.OPERATOR)
    if audience is Audience.TENANTS:
        caller = await callers.caller(headers, peer)
        request.state.tenant = caller.named(None, headers) if caller is not None else None
        whose.set(request.state.tenant or peer.address)
    elif audience is Audience.OPERATOR:
        callers.check_operator(headers)
    elif audience is not Audience.ALL:
        request.state.visitor = visitor = await callers.visitor(headers, peer)
        if audience is Audience.WATCHERS:
            visitor.check_sees_all()


def error_response(error: ApiError, speaks: WireProtocol | None = None) -> Response:
    """An error in the shape of a protocol; None: OpenAI's."""
    body = error_body(error) if speaks is None else speaks.error(error)
    status = error.status if speaks is None else speaks.status(error)
    response = Response(body, status, media_type="application/json")
    response.raw_headers.extend(retry_after_header(error))
    return response


async def _http_error(
    speakers: Mapping[str, WireProtocol | None], routes: Sequence[Route], request: Request, error: Exception
) -> Response:
    """What no endpoint answers: another path, or another method, which is an error in the shape of its path."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    code = "not_found" if error.status_code == 404 else None
    absent = next((one for path, one in _ABSENT.items() if _is_below(request.url.path, path)), None)
    failure = ApiError(error.status_code, message, code=code)
    if absent is not None:
        what, instead = absent
        message = f"{request.url.path}: this server has no {what}; {instead}"
        failure = ApiError(404, message, code="not_here")
    response = error_response(failure, speakers.get(request.url.path))
    response.headers.update(error.headers or {})
    if failure.status == 405:
        response.headers["allow"] = _allowed(routes, request)
    return _with_id(request, response)


def _allowed(routes: Sequence[Route], request: Request) -> str:
    """The methods of all rows of a path: the framework names those of the first alone."""
    found = [route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for methods in found for method in methods}))


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place + "/")


def _is_anthropic(request: Request) -> bool:
    """Whether a client of Anthropic's asks: the list of models has the same path as OpenAI's."""
    return "anthropic-version" in request.headers


class CommonEndpoints:
    """The endpoints that every service has beside its protocols."""

    def __init__(self, service: HttpService, kept: KeptResponses) -> None:
        self._service = service
        self._kept = kept

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/health", self.health, Audience.ALL),
            Endpoint("GET", "/health/ready", self.health, Audience.ALL),
            Endpoint("GET", "/health/live", self.alive, Audience.ALL),
            Endpoint("GET", "/health/startup", self.alive, Audience.ALL),
            Endpoint("GET", "/version", self.version, Audience.ALL),
            Endpoint("GET", "/metrics", self.metrics, Audience.WATCHERS),
            Endpoint("GET", "/v1/load", self.load, Audience.VISITORS),
            Endpoint("GET", "/v1/models", self.models),
            Endpoint("GET", "/v1/models/{model:path}", self.model),
            *TokenEndpoints(self._service).endpoints(),
            *self._kept.endpoints(),
            *OllamaEndpoints(self._service).endpoints(),
            Endpoint("GET", "/v1/usage", UsageEndpoint(self._service).usage, Audience.ALL),
            *TicketEndpoints(self._service).endpoints(),
        ]

    async def health(self, request: Request) -> Response:
        status, told = self._service.health()
        if not await self._sees_all(
            request
        ):  # names of routes, places and gateways are for who may know them
            told = {"status": told["status"]}
        return json_response({**told, "version": __version__}, status)

    async def _sees_all(self, request: Request) -> bool:
        """Whether whoever asks an endpoint that is open to all would be shown all figures, too."""
        try:
            headers, peer = headers_of(request.headers.raw), peer_of(request.scope)
            return (await self._service.callers.visitor(headers, peer)).sees_all
        except ApiError:
            return False

    async def alive(self, request: Request) -> Response:
        """That this process answers: what it listens with is up, and a server of ours listens once its model is loaded.

        Nothing of what is behind it: whoever ends a process for that would end all gateways with one replica.
        """
        return json_response({"status": "ok", "version": __version__})

    async def version(self, request: Request) -> Response:
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        return Response(await self._service.exposition(), media_type="text/plain; version=0.0.4")

    async def load(self, request: Request) -> Response:
        visitor: Visitor = request.state.visitor
        told = self._service.load(visitor.sees_all)
        return json_response({**told, "believes_tenants": visitor.believes_tenants})

    async def models(self, request: Request) -> Response:
        models = self._service.models()
        if _is_anthropic(request):
            return json_response(listed(models))
        return json_response({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        model = self._service.model(request.path_params["model"])
        return json_response(model_info(model) if _is_anthropic(request) else model)


#: Who is let in from this machine without a key.
_NEAR = (Audience.VISITORS, Audience.WATCHERS)


class DocumentEndpoints:
    """The interface of this door, for machines and people: made when somebody asks, and anew where other models are
    served by then. `table` is filled in by who has all of it."""

    def __init__(self, service: HttpService, protocols: Sequence[WireProtocol]) -> None:
        self._service = service
        self._protocols = protocols
        self._made: tuple[tuple[str, ...], dict[str, Any]] | None = None
        self.table: Sequence[Endpoint] = ()

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", "/openapi.json", self.described, Audience.VISITORS),
            Endpoint("GET", "/docs", self.page, Audience.VISITORS),
        ]

    async def described(self, request: Request) -> Response:
        return json_response(self._document())

    async def page(self, request: Request) -> Response:
        return HTMLResponse(shown(self._document()))

    def _document(self) -> dict[str, Any]:
        models = tuple(dict.fromkeys(str(one["id"]) for one in self._service.models()))
        if self._made is None or self._made[0] != models:
            rows = [
                ServedPath(one.method, one.path, one.audience is Audience.ALL, one.audience in _NEAR)
                for one in self.table
            ]
            self._made = models, document(rows, self._protocols, models, self._service.callers.are_asked)
        return self._made[1]
