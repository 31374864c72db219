"""The one door: every request is read, refused, answered and counted here, whatever stands behind.

Requests in one of the protocols never meet a framework: body in, a journey, bytes out. Everything else is a table of
endpoints (`server.app`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from weighbridge.errors import WeighbridgeError
from weighbridge.server.endpoint import HttpService
from weighbridge.server.streams import KeptStreams
from weighbridge.server.tracing.spans import Served
from weighbridge.server.tracing.tracer import Tracer
from weighbridge.server.watching.watchdog import Watchdog
from weighbridge.ticket.trace import Trace, current
from weighbridge.wire.answer import Answers
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import LONG_BODY, apart, held_body, read_body
from weighbridge.wire.errors import ApiError, as_api_error, retry_after_header
from weighbridge.wire.headers import LONGEST_ID, Headers, headers_of
from weighbridge.wire.identity.access import check_one_host, check_site
from weighbridge.wire.identity.admission import settle_caller
from weighbridge.wire.identity.callers import Peer, peer_of
from weighbridge.wire.journey import HeaderList
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import PROTOCOLS
from weighbridge.wire.readers import whose

log = logging.getLogger("weighbridge.server")


class Beside(Protocol):
    """What works beside requests, as long as the door is open."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...


class Door:
    """ASGI. `rest` serves what no protocol does."""

    def __init__(
        self,
        service: HttpService,
        rest: ASGIApp,
        *,
        protocols: Sequence[WireProtocol] = PROTOCOLS,
        streams: KeptStreams | None = None,
        beside: Sequence[Beside] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._beside = beside
        self._rest = rest
        self._protocols = {protocol.path: protocol for protocol in protocols}
        self._clock = clock
        self._answers = Answers(service, clock)
        self._streams = KeptStreams(service) if streams is None else streams
        self._tracer = service.tracer
        self._streams.go_on = self._read_again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if len(path) > 1 and path.endswith("/"):  # a slash behind a path means nothing
                scope = {**scope, "path": path[:-1]}
            protocol = self._protocols.get(scope["path"])
            if protocol is not None and scope["method"] == "POST":
                await self._complete(protocol, scope, receive, send)
                return
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        await self._rest(scope, receive, send)

    async def _complete(self, protocol: WireProtocol, scope: Scope, receive: Receive, send: Send) -> None:
        service, status, trace = self._service, 500, None
        try:
            try:
                headers = headers_of(scope["headers"])
                if self._tracer is not None:
                    trace = self._tracer.begin(headers)
                    current.set(trace.span)
                if not service.callers.are_asked:
                    check_site(service.access, scope["server"][0], headers)
                check_one_host(headers)
                peer = peer_of(scope)
                caller = await service.callers.caller(headers, peer)
                whose.set(caller.named(None, headers) if caller is not None else peer.address)
                with held_body() as held:
                    body = await read_body(receive, headers, service.max_body, held)
                    if len(body) < LONG_BODY:
                        ask = protocol.read(body)
                    else:
                        ask = await apart(len(body), protocol.read, body)
                    await settle_caller(service, protocol, ask, headers, caller, self._clock())
                if trace is not None:
                    trace.path, trace.streams, ask.trace = ask.path, ask.stream, trace
                detached = await protocol.detach(ask)
            except Exception as error:
                failure = as_api_error(error)
                if failure.status == 500:
                    log.error("a request to %s failed", protocol.path, exc_info=error)
                status = protocol.status(failure)
                await refuse(protocol, failure, scope, send)
                return
            if detached is not None:
                status = await detached(receive, send)
            elif ask.answer is not None:
                status = await self._answer_at_once(protocol, ask, ask.answer, scope, send)
            elif ask.stream and self._streams.wants(ask):
                status = await self._streams.answer(
                    ask, headers, partial(self._answers.answer, ask, protocol), receive, send
                )
            else:
                status = await self._answers.answer(ask, protocol, receive, send)
        except OSError:  # the client's connection broke
            pass
        except Exception:
            log.exception("a request to %s failed", protocol.path)
        finally:
            service.answered(protocol.path, status)
            if trace is not None and self._tracer is not None:
                self._tracer.end(trace, _served(self._tracer, trace, protocol.path, status, scope))
                current.set(None)

    async def _read_again(
        self, path: str, body: bytes, headers: Headers, peer: Peer
    ) -> tuple[Ask, Callable[[Receive, Send], Awaitable[int]]]:
        """A request that another gateway had read, and what writes the rest of its answer. Raises what reading does."""
        protocol, service = self._protocols[path], self._service
        caller = await service.callers.caller(headers, peer)
        ask = await apart(len(body), protocol.read, body)
        await settle_caller(service, protocol, ask, headers, caller, self._clock())
        return ask, partial(self._answers.answer, ask, protocol)

    async def _answer_at_once(
        self, protocol: WireProtocol, ask: Ask, answer: bytes, scope: Scope, send: Send
    ) -> int:
        """Say what a protocol says by itself of a model that is there."""
        try:
            self._service.model(ask.model)
            await self._service.touch(ask.model, ask.keep_alive)
        except WeighbridgeError as error:
            failure = as_api_error(error)
            await refuse(protocol, failure, scope, send)
            return protocol.status(failure)
        await _send_json(send, 200, answer, _named(protocol, scope))
        return 200

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._service.callers.start()
        await self._service.start()
        watchdog = Watchdog(self._service.stalled, self._service.watched())
        watchdog.start()
        self._answers.start()
        for one in self._beside:
            await one.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._answers.stop()
        for one in self._beside:
            await one.close()
        for protocol in self._protocols.values():
            await protocol.close()
        watchdog.stop()
        await self._service.stop()
        await self._service.callers.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _served(tracer: Tracer, trace: Trace, path: str, status: int, scope: Scope) -> Served:
    address, port = scope.get("server") or ("", None)
    return Served(
        trace, path, status, tracer.clock(), tracer.by_engine, scope.get("scheme", "http"), address, port
    )


async def refuse(protocol: WireProtocol, failure: ApiError, scope: Scope, send: Send) -> None:
    """Answer a request that could not be read."""
    headers = [*_named(protocol, scope), *retry_after_header(failure)]
    await _send_json(send, protocol.status(failure), protocol.error(failure), headers)


def _named(protocol: WireProtocol, scope: Scope) -> HeaderList:
    """What names an answer to a request that got no name of ours."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    name = given[:LONGEST_ID] or uuid.uuid4().hex.encode()
    return [(header, name) for header in protocol.id_headers]


async def _send_json(send: Send, status: int, body: bytes, more: HeaderList) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
