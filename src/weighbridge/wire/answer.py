"""Writes the answer to one request: streamed or whole, until the client goes away. The one writer of every door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from weighbridge.errors import words_of
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import Receive, until_gone
from weighbridge.wire.errors import ApiError, as_api_error, error_fields, error_message, retry_after_header
from weighbridge.wire.headers import request_id
from weighbridge.wire.journey import Answered, HeaderList, Journey, Service, WholeAnswer
from weighbridge.wire.protocol import Encoder, WireProtocol

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
#: Takes what is to be called once a client is gone; None: nothing any more.
WhenGone = Callable[[Callable[[], None] | None], None]

#: Seconds of silence after which a stream gets a comment, so that proxies keep the line open.
KEEP_ALIVE_SECONDS = 15.0
#: The status that access logs give a client that went away before there was one.
CLIENT_GONE = 499
#: Said by our own headers, or by the writer.
_NOT_PASSED_ON = frozenset({"content-type", "content-length", "cache-control", "x-accel-buffering"})


class Line:
    """The connection to one client. `status` is None until the answer has begun."""

    __slots__ = (
        "_encoder",
        "_limits",
        "_protocol",
        "_send",
        "ended",
        "status",
        "streaming",
        "ticket",
        "wrote_at",
    )

    def __init__(
        self,
        send: Send,
        protocol: WireProtocol,
        encoder: Encoder,
        limits: Callable[[], HeaderList],
        streaming: bool,
        now: float,
    ) -> None:
        """`limits`: what every answer says, whatever became of the request: its name, and its tenant's limits."""
        self._send = send
        self._limits = limits
        self._protocol = protocol
        self._encoder = encoder
        self.streaming = streaming
        self.status: int | None = None
        self.ended = False
        self.ticket = ""
        self.wrote_at = now

    async def start(self, status: int, headers: HeaderList) -> None:
        self.status = status
        headers += self._limits()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def start_stream(self, headers: HeaderList) -> None:
        await self.start(
            200,
            [
                (b"content-type", self._encoder.stream_type.encode()),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
                *headers,
            ],
        )

    async def write(self, body: bytes, more: bool, now: float) -> None:
        self.wrote_at = now
        self.ended = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def pulse(self, now: float) -> None:
        """Say that we are still here. From now on a failure can only be told inside the stream."""
        if not self._encoder.keep_alive:
            return
        if self.status is None:
            await self.start_stream([(b"x-weighbridge-ticket", self.ticket.encode())] if self.ticket else [])
        if not self.ended:
            await self.write(self._encoder.keep_alive, True, now)

    async def fail(self, error: Exception, now: float) -> None:
        """Tell the client what went wrong, in the way that is still open."""
        if self.ended:
            return
        failure = answered_error(error) if isinstance(error, Answered) else as_api_error(error)
        if self.status is not None:
            await self.write(self._encoder.failure(failure), False, now)
            return
        body, headers = self._protocol.error(failure, self.ticket), self._ticket_header()
        content_type = "application/json"
        if isinstance(error, Answered):
            headers += passed_headers(error.headers)
            if self._protocol.passes_errors:
                body, content_type = error.body, error.headers.get("content-type", content_type)
        else:
            headers += retry_after_header(failure)
        headers += [(b"content-type", content_type.encode("latin-1")), (b"content-length", b"%d" % len(body))]
        await self.start(self._protocol.status(failure), headers)
        await self.write(body, False, now)

    def refusal(self, answer: WholeAnswer) -> WholeAnswer:
        """Another server's error as the client gets it: as it came where it is in the protocol's own shape."""
        if self._protocol.passes_errors:
            return answer
        error = answered_error(answer)
        body, status = self._protocol.error(error, self.ticket), self._protocol.status(error)
        return replace(answer, body=body, status=status, content_type="application/json")

    def _ticket_header(self) -> HeaderList:
        return [(b"x-weighbridge-ticket", self.ticket.encode())] if self.ticket else []


class Answers:
    """All answers being written. One task keeps quiet lines open, whatever their number."""

    def __init__(self, service: Service, clock: Callable[[], float]) -> None:
        self._service = service
        self._clock = clock
        self._lines: set[Line] = set()
        self._pulses: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._pulses = asyncio.create_task(self._pulse())

    async def stop(self) -> None:
        if self._pulses is not None:
            self._pulses.cancel()
            await asyncio.gather(self._pulses, return_exceptions=True)

    async def answer(self, ask: Ask, protocol: WireProtocol, receive: Receive, send: Send) -> int:
        """Serve one request to its end; return the status. A client that goes away cancels it at once: whose method
        `receive` is has a `when_gone` that tells, or else a task waits for it.

        Raises what nobody foresaw, after the client was told.
        """
        encoder = protocol.encoder(ask)
        limits = partial(self._always_said, ask, protocol)
        line = Line(send, protocol, encoder, limits, ask.stream and not encoder.gathers, self._clock())
        task = asyncio.current_task()
        assert task is not None
        gone = False

        def leave() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        when_gone: WhenGone | None = getattr(getattr(receive, "__self__", None), "when_gone", None)
        watcher: asyncio.Task[None] | None = None
        if when_gone is not None:
            when_gone(leave)
        else:
            watcher = asyncio.create_task(_watch(receive, leave))
        self._lines.add(line)
        try:
            await self._serve(ask, encoder, line)
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
        finally:
            self._lines.discard(line)
            if when_gone is not None:
                when_gone(None)
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
        return line.status or CLIENT_GONE

    def _always_said(self, ask: Ask, protocol: WireProtocol) -> HeaderList:
        """What names a request, and what is left of its tenant's limits."""
        name = (request_id(ask.headers) or ask.id).encode("latin-1", "replace")
        said = [(header, name) for header in protocol.id_headers]
        said += self._service.limit_headers(ask.tenant)
        return said

    async def _serve(self, ask: Ask, encoder: Encoder, line: Line) -> None:
        journey: Journey | None = None
        error: str | None = None
        try:
            try:
                journey = await self._service.admit(ask)
                ask.tell(journey.ticket)
            finally:  # which id it has is known only now: a refusal may have a ticket too
                line.ticket = ask.id if self._service.tickets.get(ask.id) is not None else ""
            opened = await journey.open()
            encoder.begin(journey.ticket)
            if opened.is_stream and opened.status < 400:
                await (self._gather if encoder.gathers else self._stream)(journey, encoder, line)
            else:
                await self._whole(journey, encoder, line)
        except asyncio.CancelledError:
            raise
        except OSError:
            error = "the client's connection broke"
        except Exception as failure:
            error = words_of(failure)
            await line.fail(failure, self._clock())
            if not isinstance(failure, Answered) and as_api_error(failure).status == 500:
                raise
        finally:
            if journey is not None:
                await journey.close(error)

    async def _stream(self, journey: Journey, encoder: Encoder, line: Line) -> None:
        clock, encode = self._clock, encoder.event
        if line.status is None:
            await line.start_stream(journey.headers())
        elif encoder.keep_alive:  # opened by a pulse, before anybody knew who would answer
            await line.write(_as_comment(journey.headers()), True, clock())
        async for event in journey.stream():
            body = encode(event)
            if body or event.last:
                await line.write(body, not event.last, clock())
        if not line.ended:
            await line.write(encoder.end(), False, clock())

    async def _gather(self, journey: Journey, encoder: Encoder, line: Line) -> None:
        """One body out of a stream; an error in it is an answer of its own, since nothing was said before."""
        parts = [encoder.event(event) async for event in journey.stream()]
        body = b"".join([*parts, encoder.end()])
        headers = journey.headers()
        headers.append((b"content-type", encoder.stream_type.encode("latin-1")))
        headers.append((b"content-length", b"%d" % len(body)))
        await line.start(200, headers)
        await line.write(body, False, self._clock())

    async def _whole(self, journey: Journey, encoder: Encoder, line: Line) -> None:
        answer = await journey.whole()
        if line.status is not None:  # kept open as a stream, but what answered sent none
            late = encoder.late(answer) if answer.status < 400 else encoder.failure(answered_error(answer))
            await line.write(late, False, self._clock())
            return
        shown = replace(answer, body=encoder.whole(answer)) if answer.status < 400 else line.refusal(answer)
        headers = journey.headers()
        headers.append((b"content-type", shown.content_type.encode("latin-1")))
        headers.append((b"content-length", b"%d" % len(shown.body)))
        await line.start(shown.status, headers)
        await line.write(shown.body, False, self._clock())

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 3)
            now = self._clock()
            for line in list(self._lines):
                if line.streaming and not line.ended and now - line.wrote_at >= KEEP_ALIVE_SECONDS:
                    with suppress(OSError):
                        await line.pulse(now)


async def _watch(receive: Receive, gone: Callable[[], None]) -> None:
    await until_gone(receive)
    gone()


def _as_comment(headers: HeaderList) -> bytes:
    """Our own headers as an event stream's comment, for an answer whose headers went out before they were known."""
    return b"".join(b": %b: %b\n" % one for one in headers if one[0].startswith(b"x-weighbridge-")) + b"\n"


def answered_error(error: Answered | WholeAnswer) -> ApiError:
    """A server's own error as one of ours, for a protocol or a moment that cannot pass it on as it came."""
    fields = error_fields(error.body)
    code, param = fields.get("code"), fields.get("param")
    kind = str(fields.get("type") or ("invalid_request_error" if error.status < 500 else "server_error"))
    return ApiError(
        error.status,
        error_message(error.body),
        kind=kind,
        code=None if code is None else str(code),
        param=param if isinstance(param, str) else None,
    )


def passed_headers(headers: Any) -> HeaderList:
    """A server's headers that go on to the client; its ticket goes under a name of its own."""
    passed: HeaderList = []
    for name, value in headers.items():
        written = _WRITTEN.get(name)
        if written is None:
            written = _written(name)
        if written:
            passed.append((written, value.encode("latin-1")))
    return passed


def _written(name: str) -> bytes:
    """The name under which a server's header goes on; empty for one that does not."""
    written = b""
    if name in _RENAMED:
        written = _RENAMED[name]
    elif name not in _NOT_PASSED_ON and name not in _OURS and not name.startswith(_OF_ACCOUNTS):
        written = name.encode("latin-1")
    if len(_WRITTEN) < MOST_NAMES:
        _WRITTEN[name] = written
    return written


#: What was worked out of names; servers have few.
_WRITTEN: dict[str, bytes] = {}
MOST_NAMES = 1024


#: What names a request at the server behind us, and so has another name beside ours.
_RENAMED = {
    "x-weighbridge-ticket": b"x-weighbridge-replica-ticket",
    "x-request-id": b"x-weighbridge-replica-request-id",
}
#: What a provider says of our account with it, which is not the client's.
_OF_ACCOUNTS = "x-ratelimit-"
_OURS = frozenset(
    {"x-weighbridge-replica", "x-weighbridge-cost", "x-weighbridge-placement", "x-weighbridge-prefix"}
)
