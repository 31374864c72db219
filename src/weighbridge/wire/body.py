"""Reading a request: bounded, decoded, checked; every complaint names the field."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec

from weighbridge.integers import MAX_PLACES, with_integers
from weighbridge.unzip import Unzip, unzip_of
from weighbridge.wire.errors import ApiError
from weighbridge.wire.readers import ReaderThreads, whose

T = TypeVar("T")
P = ParamSpec("P")

#: Bytes from which a body is read on a thread of its own: 16 KiB of the smallest messages take some 10 ms to be read,
#: checked and tokenised, and a thread costs 0.1 ms.
LONG_BODY = 16 << 10
#: Fields of a body, known or not.
MAX_FIELDS = 1024

#: Bytes of all bodies that are being read, beyond the first piece of each; at least so many of the largest ones.
MOST_READING, LARGEST_ONES = 256 << 20, 4
#: Seconds after which to come again whose body found no room.
BODY_WAIT = 1.0

#: What may restrict a request, as it stands in a body: only as a name, since in a text a backslash is before the mark.
_EXTENSION, _LABELS = b'"weighbridge"', b'"labels"'

_readers = ReaderThreads()

_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_learning = threading.Lock()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class BodyRoom:
    """How many bytes of bodies are being read: all together, and by whose they are.

    A caller may hold as much as it leaves free: one alone half of all, two a third each, so that there is always room
    for who has none yet, and bodies that never end keep out their sender's alone.
    """

    def __init__(self, most: int = MOST_READING) -> None:
        self.most = most
        self.total = 0
        self.held: Counter[str] = Counter()

    def take(self, caller: str, size: int, largest: int) -> bool:
        """Whether there is room for `size` bytes more of a body that may have `largest`; they are held then."""
        free = max(self.most, LARGEST_ONES * largest) - self.total - size
        if self.held[caller] + size > free:
            return False
        self.total += size
        self.held[caller] += size
        return True

    def give_back(self, caller: str, size: int) -> None:
        """Free what was held."""
        self.total -= size
        self.held[caller] -= size
        if not self.held[caller]:
            del self.held[caller]


@dataclass(slots=True)
class Held:
    """What one request holds of the room, as long as its body is read and understood."""

    room: BodyRoom
    caller: str
    size: int = 0

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.size:
            self.room.give_back(self.caller, self.size)
            self.size = 0

    def grow(self, size: int, largest: int) -> None:
        """Hold so many bytes more. Raises ApiError 429."""
        if not self.room.take(self.caller, size, largest):
            message = (
                f"this server is reading {self.room.held[self.caller] >> 20} MiB of your request bodies, and takes no "
                "more from one caller now; send long ones one after another"
            )
            raise ApiError(
                429, message, kind="rate_limit_error", code="too_many_bodies", retry_after=BODY_WAIT
            )
        self.size += size


_room = BodyRoom()


async def until_gone(receive: Receive) -> None:
    """Wait until the client of a request whose body was read has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def held_body(room: BodyRoom = _room) -> Held:
    """What holds the bytes of a body while its block lasts, for whom this task works."""
    return Held(room, whose.get())


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit: int, held: Held | None = None
) -> bytes:
    """The whole body, unpacked where it came packed; never more than `limit` bytes are held either way.

    `held`: what the request holds until its body is understood; None: it holds it here, until the body is read.
    Raises ApiError 413, 415 for a way of packing that is not known, 400 when the client went away, or 429 where too
    much is being read for its caller.
    """
    if held is None:
        with held_body() as here:
            return await read_body(receive, headers, limit, here)
    try:
        packed = unzip_of(headers.get("content-encoding"))
    except ValueError as error:
        raise ApiError(415, f"{error}; send it as it is", code="unsupported_encoding") from None
    body = await _as_sent(receive, headers, limit, held)
    if packed is None:
        return body
    whole = await apart(max(len(body), LONG_BODY), _unpacked, packed, body, limit)
    if len(whole) >= LONG_BODY:
        held.grow(len(whole), limit)
    return whole


def _unpacked(unzip: Unzip, body: bytes, limit: int) -> bytes:
    """What is packed in a body; bounded by what comes out, since a small body may be a very long one."""
    parts, size = [], 0
    try:
        for piece in unzip.pieces(body):
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    if not unzip.complete:
        raise ApiError(400, "the packed body ends too early; send all of it")
    return b"".join(parts)


async def _as_sent(receive: Receive, headers: Mapping[str, str], limit: int, held: Held) -> bytes:
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
        held.grow(len(parts[-1]), limit)
    raise ApiError(400, "the connection closed before the body was complete")


async def apart(size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What `work` returns or raises; where it is about `size` bytes or more, it is done while the event loop goes on,
    by turns among callers.

    What it does not return it should leave to itself: to free millions of objects takes as long as to make them.
    """
    if size < LONG_BODY:
        return work(*args, **options)
    done: T = await _readers.run(size, partial(work, *args, **options))
    return done


def _too_large(limit: int) -> ApiError:
    message = f"the request body is larger than the {limit} bytes this server takes; send less"
    return ApiError(413, message, code="body_too_large")


def decode(body: bytes, kind: type[T]) -> T:
    """Return a typed request from JSON. Raises ApiError 400 that names the field and what it must be."""
    if not body.strip():
        raise ApiError(400, "the request body is empty; send a JSON object")
    try:
        if not body.isascii():
            body.decode()  # what is kept as it was written is UTF-8 as well
        decoded = _typed(body, _decoder(kind))
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise ApiError(400, message, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}") from error
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None
    if _EXTENSION in body and (body.count(_EXTENSION) > 1 or body.count(_LABELS) > 1):
        _check_written_once(body)
    return decoded


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as it is written, names that are written twice included."""


def _check_written_once(body: bytes) -> None:
    """Raise ApiError where `weighbridge`, or a field of it, is written twice: the first would be lost, and with it what
    it forbids."""
    try:
        whole = json.loads(body, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None
    said = [value for name, value in whole if name == "weighbridge"] if isinstance(whole, _Pairs) else []
    names = [name for value in said if isinstance(value, _Pairs) for name, _ in value]
    if len(said) > 1 or len(set(names)) < len(names):
        raise ApiError(
            400, "weighbridge: something of it is written twice; write it once", param="weighbridge"
        )


def _typed(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What a body says, in which an integer may be written with a fraction of nothing."""
    for _ in range(MAX_PLACES):
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            mended = with_integers(body, str(error))
            if mended is None:
                raise
            body = mended
    return decoder.decode(body)


def plain(raw: bytes, name: str) -> Any:
    """Return the field `name` of a body, kept as it was written. Raises ApiError 400: a number may be beyond all."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"{name}: cannot be read: {error}", param=name) from error


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """The decoder of a type, made by one thread alone: msgspec learns a type at its first use, and two threads that
    do so at once crash the process."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _learning:
            decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


def _explain(text: str) -> tuple[str, str | None]:
    """`Expected `int`, got `str` - at `$.max_tokens`` becomes a sentence and the parameter's name."""
    match = re.search(r" - at `\$\.?(.*)`$", text)
    if match is None:
        missing = re.search(r"missing required field `(.*?)`", text)
        if missing:
            return f"the field {missing[1]!r} is required", missing[1]
        return f"the request is not as expected: {text}", None
    path = match[1]
    name = re.split(r"[.\[]", path)[0] or None
    problem = text[: match.start()]
    missing = re.search(r"missing required field `(.*?)`", problem)
    if missing:
        return f"{path}: the field {missing[1]!r} is required", name
    return f"{path or 'the body'}: {problem[0].lower()}{problem[1:]}", name
