"""Fuzz targets of what servers send: HTTP answers and server-sent events, whole and cut in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

from tests.fuzz import seeds
from tests.fuzz.target import Target
from weighbridge.wire.client import HttpClient, _Connection
from weighbridge.wire.events import Event
from weighbridge.wire.protocols import ANSWER_PARSERS, EVENT_PARSERS
from weighbridge.wire.sse import EventFramer, EventTooLong, event_data

_MOST_BODY = 1 << 16
_Answer = tuple[int, dict[str, str], bytes]


def _pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The first byte says how long the pieces are into which the others are cut; 0: one piece."""
    size, rest = (data[0] if data else 0), data[1:]
    return rest, [rest[at : at + size] for at in range(0, len(rest), size)] if size else [rest]


def parse_sse(data: bytes) -> bytes | None:
    """A stream of events: nothing is lost or made where it is cut, and every protocol reads what is in it."""
    stream, pieces = _pieces(data)
    framer = EventFramer()
    blocks = [*(framer.feed(piece) for piece in pieces), framer.flush()]
    assert b"".join(blocks) == stream
    for parse in EVENT_PARSERS.values():
        for block in filter(None, blocks):
            repr(Event(block, parse).parts)
    for parse in ANSWER_PARSERS.values():
        repr(parse(stream))
    found = [data for block in blocks for data in event_data(block)]
    return found[0] if found else None


class _Line(asyncio.Transport):
    """A connection that takes whatever is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def _answer(pieces: Sequence[bytes]) -> _Answer:
    """What comes of a server that sends these pieces and hangs up, whatever is read of it while they come."""
    client = HttpClient("http://127.0.0.1:1", 1.0)
    connection, line = _Connection(client), _Line()
    connection.connection_made(line)
    response = connection.send(client.head("GET", "/", {}) + b"\r\n")
    for piece in pieces:
        if not line.closed:
            connection.data_received(piece)
    reused = client._unused()
    assert reused is None or response.ended, "a connection waits for a request in the middle of an answer"
    connection.connection_lost(None)
    await response.begin(None)
    return response.status, response.headers, await response.whole(_MOST_BODY)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def parse_http(data: bytes) -> bytes:
    """An answer in pieces is what it is as a whole."""
    stream, pieces = _pieces(data)
    answer = _loop().run_until_complete(_answer(pieces))
    assert len(answer[2]) <= _MOST_BODY
    assert len(pieces) < 2 or answer == _loop().run_until_complete(_answer([stream])), (
        "pieces change the answer"
    )
    return answer[2]


SSE = Target(
    "sse",
    parse_sse,
    (EventTooLong,),
    seeds.events,
    (
        *(
            b"data: ",
            b"data:",
            b"\n\n",
            b"\r\n\r\n",
            b": comment\n",
            b"event: x\n",
            b"data: [DONE]\n\n",
            b'"choices":[',
        ),
        *(
            b'"delta":{',
            b'"index":',
            b'"content":"',
            b'"tool_calls":[',
            b'"function":{',
            b'"arguments":"',
            b'"usage":{',
        ),
        *(
            b'"prompt_tokens":',
            b'"error":{',
            b'"message":"',
            b'"finish_reason":',
            b'"embedding":[',
            b"1e999",
            b"null",
        ),
    ),
)
HTTP = Target(
    "http",
    parse_http,
    (OSError,),  # a broken answer is a ConnectionError, a late one a TimeoutError
    seeds.answers,
    (
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 ",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
        ),
        *(
            b"Connection: close\r\n",
            b"Connection: keep-alive\r\n",
            b"0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
        ),
        *(
            b"Upgrade: websocket\r\n",
            b"Connection: upgrade\r\n",
            b" 204 ",
            b" 304 ",
            b" 101 ",
            b"\r\n ",
            b";x=1\r\n",
        ),
    ),
)
