"""The conversation with Envoy about one request: its parts come in as messages, and each is answered in its kind.

How bodies come is Envoy's configuration. FULL_DUPLEX_STREAMED: in pieces, which we give back when we like. BUFFERED: in
one. An answer's body may also come in pieces to look at (STREAMED), or not at all (NONE).

A piece of an answer goes by as soon as it has come, before anybody has looked at it. Its first and its end are looked
at at once, what comes between together: once in `LOOK_AFTER`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from posixpath import normpath
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from weighbridge.server.picker import words
from weighbridge.server.picker.http2 import CallFailed, GrpcCall, GrpcStatus
from weighbridge.server.picker.messages import BUFFERED, DUPLEX, NONE, ProcessingRequest
from weighbridge.wire.body import Message
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import Headers, headers_of

#: Seconds for which pieces of an answer that have gone by wait for others to be looked at with: at 10 tokens a second
#: and more, less than a wake-up each. A load that is so much out of date is still newer than any report of it.
LOOK_AFTER = 0.1

#: Seconds that Envoy has to end a conversation in which nothing is to be said any more.
LAST_WORDS = 5.0

#: How a request's body can be read before anything is said of its headers.
_READABLE = frozenset({NONE, BUFFERED, DUPLEX})


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and headers of a replica's answer. `served`: the endpoint it came from; empty where Envoy does not say."""

    status: int
    headers: dict[str, str]
    served: str


class EnvoyTalk:
    """One request. `receive` its body, then `send_on` or `refuse`; then `answer_head`, `pass_head` and `pieces`."""

    def __init__(self, call: GrpcCall, first: Any) -> None:
        self._call = call
        sent = first.request_headers
        pairs = words.headers_in(sent)
        pseudo = {name: value.decode("latin-1") for name, value in pairs if name.startswith(b":")}
        self.raw = [(name, value) for name, value in pairs if not name.startswith(b":")]
        self.method, target = pseudo.get(b":method", ""), pseudo.get(b":path", "")
        self.path = path_of(target)
        self.subset = words.subset_in(first)
        self.has_body = not sent.end_of_stream
        told = first.protocol_config if first.HasField("protocol_config") else None
        # An older Envoy does not say how it sends bodies; the proposal asks for this way.
        self._body_mode = told.request_body_mode if told is not None else DUPLEX
        self._answer_mode = told.response_body_mode if told is not None else DUPLEX
        self._trailers = False  # behind the request's body
        self._answer_ended = False
        self._passed = words.PassedBody(self._answer_mode)
        self._gone: list[bytes] = []  # what has gone by of the answer, and was not looked at
        self._looked = False  # at anything of it
        self._timer: asyncio.TimerHandle | None = None
        self.decided = False  # what is to become of the request has been said

    @classmethod
    async def begin(cls, call: GrpcCall) -> EnvoyTalk | None:
        """The conversation with its first message; None where it ended before. Raises ApiError for a first message that
        is no request."""
        first = await _next(call)
        if first is None:
            return None
        if first.WhichOneof("request") != "request_headers":
            raise ApiError(500, "the first message has no request headers; set request_header_mode: SEND")
        return cls(call, first)

    @property
    def headers(self) -> Headers:
        return headers_of(self.raw)

    @property
    def sees_body(self) -> bool:
        """Whether there is a body, and Envoy sends it here."""
        return self.has_body and self._body_mode != NONE

    @property
    def sees_answer(self) -> bool:
        """Whether Envoy sends the body of the answer here."""
        return bool(self._answer_mode != NONE)

    async def receive(self) -> Message:
        """The next piece of the request's body, as ASGI has it. Raises ApiError for a way of sending that cannot be
        answered."""
        if self._body_mode not in _READABLE:
            raise ApiError(
                500,
                "the body comes in a way in which the endpoint cannot be told afterwards; set request_body_mode: "
                "FULL_DUPLEX_STREAMED with request_trailer_mode: SEND, or BUFFERED",
            )
        is_whole = self._body_mode == BUFFERED
        if is_whole:
            await self._say(words.go_on())
        message = await _next(self._call)
        if message is None:
            return {"type": "http.disconnect"}
        kind = message.WhichOneof("request")
        if kind == "request_trailers":
            self._trailers = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if kind != "request_body":
            return {"type": "http.disconnect"}
        sent = message.request_body
        return {"type": "http.request", "body": sent.body, "more_body": not (is_whole or sent.end_of_stream)}

    async def send_on(
        self, endpoints: list[str], to_set: words.Set, to_remove: list[str], body: bytes | None
    ) -> None:
        """Say where the request goes. `body`: what stands for its own, all of which was received; None: there is none,
        or it was not received."""
        self.decided = True
        write = self._say
        if body is None:
            await write(words.sent_on(endpoints, to_set, to_remove, None, with_body=False))
            return
        to_set = [*to_set, ("content-length", str(len(body)))]
        if self._body_mode == BUFFERED:
            await write(words.sent_on(endpoints, to_set, to_remove, body, with_body=True))
            return
        await write(words.sent_on(endpoints, to_set, to_remove, None, with_body=False))
        for piece in words.body_pieces(body, ends=not self._trailers):
            await write(piece)
        if self._trailers:
            await write(words.request_trailers())

    async def refuse(self, status: int, headers: dict[str, str], body: bytes, details: str) -> None:
        """Answer the request with an error of ours."""
        self.decided = True
        await self._say(words.refusal(status, headers, body, details))

    async def answer_head(self) -> AnswerHead | None:
        """The beginning of the answer, when it has come; None where the conversation ended before."""
        while True:
            message = await _next(self._call)
            if message is None:
                return None
            kind = message.WhichOneof("request")
            if kind == "request_body":  # of a request that went on without it
                await self._say(words.request_body(self._body_mode, message.request_body))
            elif kind == "request_trailers":
                await self._say(words.request_trailers())
            elif kind == "response_headers":
                break
        pairs = words.headers_in(message.response_headers)
        self._answer_ended = message.response_headers.end_of_stream
        status = next((value for name, value in pairs if name == b":status"), b"")
        headers = headers_of([pair for pair in pairs if not pair[0].startswith(b":")])
        return AnswerHead(int(status) if status.isdigit() else 0, headers, words.served_in(message))

    async def pass_head(self, to_set: words.Set) -> None:
        """Let the headers of the answer go by, with some of ours."""
        await self._say(words.answer_headers(to_set))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body of the answer, what has gone by of it; it ends with the answer."""
        call = self._call
        call.take = self._goes_by
        try:
            while True:
                if self._gone:
                    gone, self._gone = self._gone, []
                    yield gone[0] if len(gone) == 1 else b"".join(gone)
                elif self._answer_ended:
                    return
                elif await call.wait() and not self._gone:
                    await self._take(await _next(call))
        finally:
            call.take = None
            if self._timer is not None:
                self._timer.cancel()

    def _goes_by(self, data: bytes) -> bool:
        """Let a piece of the answer go by as it comes; False for what is none, or cannot be sent now."""
        try:
            message = ProcessingRequest.FromString(data)
        except DecodeError:
            return False
        if message.WhichOneof("request") != "response_body":
            return False
        sent = message.response_body
        if not self._call.write_now(self._passed.of(sent)):
            return False
        self._note(sent)
        if self._answer_ended or not self._looked:
            self._looked = True
            self._call.nudge()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AFTER, self._look)
        return True

    def _look(self) -> None:
        self._timer = None
        self._call.nudge()

    def _note(self, sent: Any) -> None:
        if sent.body:
            self._gone.append(sent.body)
        self._answer_ended = sent.end_of_stream

    async def _take(self, message: Any) -> None:
        """Take in what did not go by by itself."""
        kind = "" if message is None else message.WhichOneof("request")
        if message is None:
            self._answer_ended = True
        elif kind == "response_body":
            await self._call.write(self._passed.of(message.response_body))
            self._note(message.response_body)
        elif kind == "response_trailers":
            self._answer_ended = True
            await self._say(words.answer_trailers())
        elif kind == "request_body":  # the answer began before the request had ended
            await self._say(words.request_body(self._body_mode, message.request_body))

    async def let_go_by(self) -> None:
        """Let the rest of the answer go by unread."""
        async for _ in self.pieces():
            pass

    async def over(self) -> None:
        """Wait until Envoy ends the conversation. What it was about to say when it was refused is not heard."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while await self._call.read() is not None:
                    pass

    async def _say(self, message: Any) -> None:
        await self._call.write(message.SerializeToString())


async def _next(call: GrpcCall) -> Any:
    """What Envoy says next; None: nothing any more. Raises CallFailed for what is no message of the protocol."""
    data = await call.read()
    if data is None:
        return None
    try:
        return ProcessingRequest.FromString(data)
    except DecodeError:
        raise CallFailed(GrpcStatus.INTERNAL, "a message cannot be read") from None


def path_of(target: str) -> str:
    """The path that a replica reads in a request's target, however it is written: what it takes for a chat is one."""
    path = unquote(target.partition("?")[0].partition("#")[0])
    return normpath("/" + path.lstrip("/"))
