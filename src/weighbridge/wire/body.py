"""Reading a request: bounded, decoded, checked; every complaint names the field."""

from __future__ import annotations

import asyncio
import re
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec

from weighbridge.unzip import Unzip, unzip_of
from weighbridge.wire.errors import ApiError

T = TypeVar("T")
P = ParamSpec("P")

#: Bytes from which a body is read on a thread of its own: 16 KiB of the smallest messages take some 10 ms to be read,
#: checked and tokenised, and a thread costs 0.1 ms.
LONG_BODY = 16 << 10
#: Fields of a body, known or not.
MAX_FIELDS = 1024

#: Few threads, so that the event loop never waits for the interpreter behind many of them.
_readers = ThreadPoolExecutor(2, thread_name_prefix="readers")

_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_learning = threading.Lock()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """The whole body, unpacked where it came packed; never more than `limit` bytes are held either way.

    Raises ApiError 413, 415 for a way of packing that is not known, or 400 when the client went away.
    """
    try:
        packed = unzip_of(headers.get("content-encoding"))
    except ValueError as error:
        raise ApiError(415, f"{error}; send it as it is", code="unsupported_encoding") from None
    body = await _as_sent(receive, headers, limit)
    return body if packed is None else await apart(max(len(body), LONG_BODY), _unpacked, packed, body, limit)


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


async def _as_sent(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
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
            return b"".join(parts)
    raise ApiError(400, "the connection closed before the body was complete")


async def apart(size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What `work` returns or raises; where it is about `size` bytes or more, it is done while the event loop goes on.

    What it does not return it should leave to itself: to free millions of objects takes as long as to make them.
    """
    if size < LONG_BODY:
        return work(*args, **options)
    return await asyncio.get_running_loop().run_in_executor(
        _readers, partial(_tidily, work, *args, **options)
    )


def _tidily(work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Do `work`; an error takes none of its variables along."""
    try:
        return work(*args, **options)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


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
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise ApiError(400, message, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}") from error
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None


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
