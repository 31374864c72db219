"""Reading a request: bounded, decoded, checked; every complaint names the field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from weighbridge.wire.errors import ApiError

T = TypeVar("T")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; never more than `limit` bytes are held. Raises ApiError 413."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "the connection closed before the body was complete") from None
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request body is larger than the {limit} bytes this server takes; send less",
        code="body_too_large",
    )


def decode(body: bytes, kind: type[T]) -> T:
    """A typed request from JSON. Raises ApiError 400 that names the field and what it must be."""
    if not body.strip():
        raise ApiError(400, "the request body is empty; send a JSON object")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise ApiError(400, message, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}") from error
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None


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
