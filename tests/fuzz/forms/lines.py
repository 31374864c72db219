"""Streams of events and HTTP answers with lines and values changed; the first byte says how they are cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.forms import INPUT_BYTES
from tests.fuzz.forms.trees import changed_json

_ENDS = (b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\n\r\n", b"")
_LINES = (
    *(
        b": ping",
        b"event: x",
        b"id: 1",
        b"retry: 9",
        b"data",
        b"data:",
        b"data: [DONE]",
        b"data:  x",
        b"\xef\xbb\xbfdata: a",
    ),
    *(b"data: \x0b\x0c\x1c\x85", b"data: \xe2\x80\xa8", b" data: a", b"DATA: a", b"data: \xff"),
)
_HEADERS = (
    *(
        b"Content-Length: 0",
        b"Content-Length: 2",
        b"Content-Length: 5",
        b"Content-Length: 99999",
        b"Content-Length: +1",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"TE: x",
    ),
    *(
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Trailer: t",
    ),
    *(
        b"X: a\r\n b",
        b"X",
        b": y",
        b"X : y",
        b"X: \xff",
        b"Proxy-Connection: close",
        b"Keep-Alive: timeout=0",
    ),
)
_STATUS = (
    *(
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 No",
        b"HTTP/1.1 304 No",
        b"HTTP/1.1 100 Continue",
    ),
    *(
        b"HTTP/1.1 101 Switch",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.1 200",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 999 X",
        b"ICY 200 OK",
    ),
)
_CHUNKS = (
    b"0\r\n\r\n",
    b"1\r\na\r\n",
    b"2;x=1\r\nab\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"0\r\nA: b\r\n\r\n",
    b"1\r\nab\r\n",
)
_MOST_CHANGES = 3


def changed_events(data: bytes, draw: Random, pieces: Sequence[Any]) -> bytes | None:
    """Return a stream with events and the JSON in them changed."""
    cut, stream = data[:1] or b"\0", data[1:]
    if stream.startswith(b"{"):
        made = changed_json(stream, draw, pieces)
        return None if made is None else cut + made
    lines = re.split(rb"(\r\n|\n|\r)", stream)
    for _ in range(draw.randint(1, _MOST_CHANGES)):
        at = draw.randrange(len(lines))
        line, change = lines[at], draw.randrange(8)
        if line.startswith(b"data: {") and change < 5:
            made = changed_json(line[6:], draw, pieces)
            lines[at] = line if made is None else b"data: " + made
        elif line in _ENDS:
            lines[at] = draw.choice(_ENDS)
        else:
            _change_line(lines, at, draw, _LINES)
    return _bounded(_recut(cut, draw) + b"".join(lines))


def changed_answer(data: bytes, draw: Random) -> bytes | None:
    """Return an answer with lines of its head and chunks of its body changed."""
    cut, stream = data[:1] or b"\0", data[1:]
    lines = re.split(rb"(\r\n)", stream)
    for _ in range(draw.randint(1, _MOST_CHANGES)):
        at = draw.randrange(len(lines))
        change = draw.randrange(7)
        if lines[at].startswith(b"HTTP/") and change < 4:
            lines[at] = draw.choice(_STATUS) if change else lines[at] + b"\r\n" + draw.choice(_HEADERS)
        elif change == 4:
            lines.append(draw.choice(_CHUNKS))
        elif change == 5:
            lines += [draw.choice(_STATUS) + b"\r\n" + draw.choice(_HEADERS) + b"\r\n\r\n"]
        elif lines[at] == b"\r\n":
            lines[at] = draw.choice(
                (b"\r\n", b"\n", b"", b"\r\n\r\n", b"\r\n" + draw.choice(_HEADERS) + b"\r\n")
            )
        else:
            _change_line(lines, at, draw, (*_HEADERS, *_CHUNKS))
    return _bounded(_recut(cut, draw) + b"".join(lines))


def _change_line(lines: list[bytes], at: int, draw: Random, known: Sequence[bytes]) -> None:
    line, change = lines[at], draw.randrange(4)
    place = draw.randint(0, len(line))
    if change == 0:
        lines[at] = draw.choice(known)
    elif change == 1:
        lines[at] = (
            line[:place] + draw.choice((b"", b"\0", b" ", b":", b"\n")) + line[place + draw.randrange(2) :]
        )
    elif change == 2:
        lines[at] = line + draw.choice((b"\n", b"\r\n")) + draw.choice(known)
    else:
        lines[at : at + 1] = [line] * draw.choice((0, 2))
    if not lines:
        lines.append(b"")


def _recut(cut: bytes, draw: Random) -> bytes:
    return bytes([draw.choice((0, 1, 2, 3, 5, 17, draw.randrange(256)))]) if draw.random() < 0.2 else cut


def _bounded(made: bytes) -> bytes | None:
    return made if len(made) <= INPUT_BYTES else None
