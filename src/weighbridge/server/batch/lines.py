"""The lines of a batch: requests as they are read from a file, and answers as they are written to one. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw, Struct

from weighbridge.server.batch.records import Problem

#: Lines of one file, as OpenAI has it, and what is said of those that are wrong.
MAX_LINES, MAX_PROBLEMS = 50_000, 100
#: Characters of the name that a client gives a line.
LONGEST_NAME = 512
#: Bytes of a line beside its request, which may have as many as one that is sent by itself.
BESIDE = 8 << 10
#: Models that one file may name and still be written down before it is read.
MOST_MODELS = 1000
#: A batch may take so long, in seconds.
SHORTEST_WINDOW, LONGEST_WINDOW = 1, 7 * 86_400

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BOM = b"\xef\xbb\xbf"
_encode = msgspec.json.encode


class _Form(Struct):
    """A line as its client writes it."""

    custom_id: str
    url: str
    body: dict[str, Raw]
    method: str = "POST"


class _Peek(Struct):
    """What is asked of a line before it runs."""

    model: str = ""
    stream: bool | None = None
    background: bool | None = None
    weighbridge: dict[str, Raw] | None = None


_forms, _peeks = msgspec.json.Decoder(_Form), msgspec.json.Decoder(_Peek)


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a file: where its line is, what it is called, and the model that it names."""

    number: int  # from 1 on, as editors count
    start: int
    length: int
    name: str
    model: str
    is_restricted: bool  # it says itself how it is to be treated


@dataclass(slots=True)
class ReadLines:
    """A whole file: its requests, or what is wrong with it."""

    lines: list[BatchLine]
    problems: list[Problem]


def pieces(content: bytes) -> Iterator[tuple[int, int, int]]:
    """The lines that have something on them: number, start and length."""
    start, number = (len(_BOM) if content.startswith(_BOM) else 0), 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        number += 1
        if content[start:end].strip():
            yield number, start, end - start
        start = end + 1


def read_lines(content: bytes, endpoint: str, largest: int) -> ReadLines:
    """Read the requests of a file, all of which are for one endpoint. `largest`: bytes of one of them."""
    read, names = ReadLines([], []), set[str]()
    for number, start, length in pieces(content):
        if len(read.lines) >= MAX_LINES:
            message = f"the file has more than {MAX_LINES} requests; make several batches of it"
            read.problems.append(Problem("too_many_requests", message, number))
            break
        try:
            _check_length(number, length, largest)
            read.lines.append(_line(content[start : start + length], number, start, endpoint, names))
        except _Wrong as wrong:
            read.problems.append(wrong.problem)
            if len(read.problems) >= MAX_PROBLEMS:
                break
    if not (read.lines or read.problems):
        read.problems.append(
            Problem("empty_file", "the file has no requests; write one JSON object on each line")
        )
    return read


def restricted_models(content: bytes, largest: int) -> set[tuple[str, bool]] | None:
    """The models that a file of requests names, and for each whether such a line says itself how it is to be treated;
    lines that cannot be read say nothing. None: there is too much in it to know; no batch would take it."""
    found: set[tuple[str, bool]] = set()
    for count, (_, start, length) in enumerate(pieces(content)):
        if count >= MAX_LINES or length > largest + BESIDE or len(found) > MOST_MODELS:
            return None
        try:
            form = _forms.decode(content[start : start + length])
            peek = _peeks.decode(_encode(form.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        found.add((peek.model, peek.weighbridge is not None))
    return found


class _Wrong(Exception):
    def __init__(self, number: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, number, param)


def _check_length(number: int, length: int, largest: int) -> None:
    if length > largest + BESIDE:
        said = f"has {length} bytes; a request of this server may have {largest}"
        raise _Wrong(number, "line_too_long", said)


def _line(text: bytes, number: int, start: int, endpoint: str, names: set[str]) -> BatchLine:
    try:
        form = _forms.decode(text)
        peek = _peeks.decode(_encode(form.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = f"it is no request ({error}); write custom_id, method, url and body"
        raise _Wrong(number, "invalid_json_line", said) from None
    if not 1 <= len(form.custom_id) <= LONGEST_NAME:
        raise _Wrong(number, "invalid_custom_id", f"must have 1 to {LONGEST_NAME} characters", "custom_id")
    if form.custom_id in names:
        raise _Wrong(number, "duplicate_custom_id", f"{form.custom_id[:80]!r} is there already", "custom_id")
    if form.method != "POST":
        raise _Wrong(number, "invalid_method", "must be POST", "method")
    if form.url != endpoint:
        said = f"{form.url[:80]!r} is not the batch's endpoint, which is {endpoint!r}"
        raise _Wrong(number, "mismatched_endpoint", said, "url")
    for wish in ("stream", "background"):
        if getattr(peek, wish):
            raise _Wrong(number, "not_in_batches", "lines of a batch are answered whole; leave it out", wish)
    names.add(form.custom_id)
    return BatchLine(number, start, len(text), form.custom_id, peek.model, peek.weighbridge is not None)


def body_of(text: bytes) -> bytes:
    """The request in a line that was read before."""
    return _encode(_forms.decode(text).body)


def window_seconds(text: str) -> int | None:
    """The seconds of a `completion_window` such as "24h"; None for what is none."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        return None
    seconds = int(found[1]) * _UNITS[found[2]]
    return seconds if SHORTEST_WINDOW <= seconds <= LONGEST_WINDOW else None


def answered(batch: str, line: BatchLine, status: int, request: str, body: bytes) -> bytes:
    """A line of an output or error file: what a request was answered."""
    try:
        msgspec.json.decode(body)
        told: Any = Raw(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = body.decode(errors="replace")
    response = {"status_code": status, "request_id": request, "body": told}
    return _written(batch, line.number, line.name, response, None)


def unanswered(batch: str, number: int, name: str, code: str, message: str) -> bytes:
    """A line of an error file: why a request was not answered."""
    return _written(batch, number, name, None, {"code": code, "message": message})


def _written(batch: str, number: int, name: str, response: Any, error: Any) -> bytes:
    told = {
        "id": f"batch_req_{batch.removeprefix('batch_')}_{number}",
        "custom_id": name,
        "response": response,
        "error": error,
    }
    return _encode(told) + b"\n"


def unknown_endpoint(endpoint: str, known: Collection[str]) -> str:
    return f"endpoint: {endpoint[:80]!r} cannot be asked in batches; there are {', '.join(sorted(known))}"
