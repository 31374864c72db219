"""The conversation with Envoy about one request: its parts come in as messages, and each is answered in its kind.

How bodies come is Envoy's configuration. FULL_DUPLEX_STREAMED: in pieces, which we give back when we like. BUFFERED: in
one. An answer's body may also come in pieces to look at (STREAMED), or not at all (NONE).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from posixpath import normpath
from typing import Any
from urllib.parse import unquote

import grpc

from weighbridge.server.picker import words
from weighbridge.server.picker.messages import BUFFERED, DUPLEX, NONE
from weighbridge.wire.body import Message
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import Headers, headers_of

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

    def __init__(self, context: Any, first: Any) -> None:
        self._context = context
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
        self.decided = False  # what is to become of the request has been said

    @classmethod
    async def begin(cls, context: Any) -> EnvoyTalk | None:
        """The conversation with its first message; None where it ended before. Raises ApiError for a first message that
        is no request."""
        first = await context.read()
        if first is grpc.aio.EOF:
            return None
        if first.WhichOneof("request") != "request_headers":
            raise ApiError(500, "the first message has no request headers; set request_header_mode: SEND")
        return cls(context, first)

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
            await self._context.write(words.go_on())
        message = await self._context.read()
        if message is grpc.aio.EOF:
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
        write = self._context.write
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
        await self._context.write(words.refusal(status, headers, body, details))

    async def answer_head(self) -> AnswerHead | None:
        """The beginning of the answer, when it has come; None where the conversation ended before."""
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return None
            kind = message.WhichOneof("request")
            if kind == "request_body":  # of a request that went on without it
                await self._context.write(words.request_body(self._body_mode, message.request_body))
            elif kind == "request_trailers":
                await self._context.write(words.request_trailers())
            elif kind == "response_headers":
                break
        pairs = words.headers_in(message.response_headers)
        self._answer_ended = message.response_headers.end_of_stream
        status = next((value for name, value in pairs if name == b":status"), b"")
        headers = headers_of([pair for pair in pairs if not pair[0].startswith(b":")])
        return AnswerHead(int(status) if status.isdigit() else 0, headers, words.served_in(message))

    async def pass_head(self, to_set: words.Set) -> None:
        """Let the headers of the answer go by, with some of ours."""
        await self._context.write(words.answer_headers(to_set))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body of the answer, each piece after it has gone by; it ends with the answer."""
        while not self._answer_ended:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                self._answer_ended = True
                return
            kind = message.WhichOneof("request")
            if kind == "response_body":
                sent = message.response_body
                self._answer_ended = sent.end_of_stream
                await self._context.write(words.answer_body(self._answer_mode, sent))
                if sent.body:
                    yield sent.body
            elif kind == "response_trailers":
                self._answer_ended = True
                await self._context.write(words.answer_trailers())
            elif kind == "request_body":  # the answer began before the request had ended
                await self._context.write(words.request_body(self._body_mode, message.request_body))

    async def let_go_by(self) -> None:
        """Let the rest of the answer go by unread."""
        async for _ in self.pieces():
            pass


def path_of(target: str) -> str:
    """The path that a replica reads in a request's target, however it is written: what it takes for a chat is one."""
    path = unquote(target.partition("?")[0].partition("#")[0])
    return normpath("/" + path.lstrip("/"))
