"""Fuzz targets of what servers send: HTTP answers and server-sent events, whole and cut in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

import msgspec

from tests.fuzz import seeds
from tests.fuzz.forms.lines import changed_answer, changed_events
from tests.fuzz.target import Target
from tests.fuzz.typed import check_fields
from weighbridge.wire.client import HttpClient, _Connection
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import ErrorPart, Event, Parse, Part, UsagePart
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import ANSWER_PARSERS, EVENT_PARSERS, chat
from weighbridge.wire.protocols.chat import ChatProtocol
from weighbridge.wire.protocols.messages import MessagesProtocol
from weighbridge.wire.protocols.ollama import OllamaChat
from weighbridge.wire.protocols.responses import ResponsesProtocol
from weighbridge.wire.sse import EventFramer, EventTooLong, event_data
from weighbridge.wire.usage import MOST_TOKENS

_MOST_BODY = 1 << 16
#: What a server answers to the next request on a connection that was kept.
_NEXT = b"HTTP/1.1 201 Next\r\nContent-Length: 4\r\n\r\nnext"
_RESPONSES, _MESSAGES, _OLLAMA = ResponsesProtocol(), MessagesProtocol(), OllamaChat()
_Answer = tuple[int, dict[str, str], bytes]


def _pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The first byte says how long the pieces are into which the others are cut; 0: one piece."""
    size, rest = (data[0] if data else 0), data[1:]
    return rest, [rest[at : at + size] for at in range(0, len(rest), size)] if size else [rest]


def _check_parts(parts: Sequence[Part]) -> None:
    """What a server says has the types that the rest of the program relies on, and counts are counts."""
    for part in parts:
        check_fields(part)
        assert isinstance(part, UsagePart | ErrorPart) or part.choice >= 0, part
        if isinstance(part, UsagePart):
            usage = part.usage
            assert (
                0 <= usage.cached_tokens <= usage.prompt_tokens <= MOST_TOKENS >= usage.output_tokens >= 0
            ), usage


def _data(blocks: Sequence[bytes]) -> list[bytes]:
    return [data for block in blocks for data in event_data(block)]


def parse_sse(data: bytes) -> None:
    """A stream of events: it says the same wherever it is cut, and every protocol reads what is in it."""
    stream, pieces = _pieces(data)
    framer = EventFramer()
    blocks = [*(framer.feed(piece) for piece in pieces), framer.flush()]
    assert b"".join(blocks) == stream
    assert len(pieces) < 2 or _data(blocks) == _data([stream]), "where it is cut changes the events"
    for parse in EVENT_PARSERS.values():
        for block in filter(None, blocks):
            _check_parts(Event(block, parse).parts)
    for parse in ANSWER_PARSERS.values():
        _check_parts(parse(stream))
    for path, protocol, body in _ASKED:
        _check_written(protocol, body, [block for block in blocks if block], EVENT_PARSERS[path])
        _check_written(protocol, body, [], ANSWER_PARSERS[path], stream)


#: What the answers are to: each protocol that is none of OpenAI's first ones, streamed and not.
_ASKED = [
    (chat.PATH, _RESPONSES, b'{"model":"m","input":"a","include":["message.output_text.logprobs"]}'),
    (chat.PATH, _MESSAGES, b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"}]}'),
    (chat.PATH, _OLLAMA, b'{"model":"m","messages":[{"role":"user","content":"a"}]}'),
    (chat.PATH, _OLLAMA, b'{"model":"m","stream":false,"messages":[{"role":"user","content":"a"}]}'),
    (chat.PATH, ChatProtocol(), b'{"model":"m","messages":[{"role":"user","content":"a"}],"stream":true}'),
]


def _check_written(
    protocol: WireProtocol, body: bytes, blocks: Sequence[bytes], parse: Parse, whole: bytes = b""
) -> None:
    """Whatever a server says, it can be said in another protocol, or is an error there: in JSON that all can read."""
    encoder = protocol.encoder(protocol.read(body))
    try:
        out = encoder.whole(WholeAnswer(whole, parse)) if whole else b""
        out += b"".join(encoder.event(Event(block, parse)) for block in blocks)
        out += encoder.end() if not whole else b""
    except ApiError:
        return
    for line in out.split(b"\n"):
        data = line.removeprefix(b"data: ")
        if protocol.passes_errors or data in (b"", b"[DONE]") or not data.startswith(b"{"):
            continue  # what goes on as it came
        msgspec.json.decode(data)


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
    """What comes of a server that sends these pieces, and answers another request if the connection is kept."""
    client = HttpClient("http://127.0.0.1:1", 1.0)
    connection, line = _Connection(client), _Line()
    connection.connection_made(line)
    head = client.head("GET", "/", {}) + b"\r\n"
    response = connection.send(head)
    for piece in pieces:
        if not line.closed:
            connection.data_received(piece)
    reused = client._unused()
    assert reused is None or response.ended, "a connection waits for a request in the middle of an answer"
    says_close = response.headers.get("connection", "").strip().lower() == "close"
    assert reused is None or not says_close, "a connection waits for a request that its server closes"
    if reused is not None:
        second = reused.send(head)
        reused.data_received(_NEXT)
        await second.begin(None)
        assert (second.status, await second.whole(_MOST_BODY)) == (201, b"next"), (
            "a request gets another's answer"
        )
    connection.connection_lost(None)
    await response.begin(None)
    return response.status, response.headers, await response.whole(_MOST_BODY)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def parse_http(data: bytes) -> None:
    """An answer in pieces is what it is as a whole."""
    stream, pieces = _pieces(data)
    answer = _loop().run_until_complete(_answer(pieces))
    assert len(answer[2]) <= _MOST_BODY
    assert len(pieces) < 2 or answer == _loop().run_until_complete(_answer([stream])), (
        "pieces change the answer"
    )


SSE = Target(
    "sse",
    parse_sse,
    (EventTooLong,),
    seeds.events,
    (
        *(b"data: ", b"data:", b"\n\n", b"\r\n\r\n", b": comment\n", b"event: x\n", b"data: [DONE]\n\n"),
        *(b'"choices":[', b'"delta":{', b'"index":', b'"content":"', b'"tool_calls":[', b'"function":{'),
        *(b'"arguments":"', b'"usage":{', b'"prompt_tokens":', b'"error":{', b'"message":"'),
        *(b'"finish_reason":', b'"embedding":[', b"1e999", b"null"),
    ),
    lambda data, draw: changed_events(data, draw, seeds.EVENT_PIECES),
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
    changed_answer,
)
