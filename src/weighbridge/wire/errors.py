"""Errors as a client sees them: one face for whatever was raised below, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from math import ceil
from typing import Any

import msgspec

from weighbridge.errors import BadInput, Inside, Refused, WeighbridgeError, plainly, words_of

#: No more of another server's words is repeated in a message of ours.
LONGEST_QUOTE = 300

#: Characters of a message: what a client wrote is repeated in some, and may be as long as a request.
LONGEST_MESSAGE = 2000
#: Of these at the end, where it says what to do.
_LAST_WORDS = 400

#: Whether this task works for somebody who does not run the server, and is not told what is said inside.
told_plainly: ContextVar[bool] = ContextVar("told_plainly", default=True)


class ApiError(WeighbridgeError):
    """An answer other than 200, with OpenAI's fields. What it says is for whom this task works."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(bounded(plainly(message) if told_plainly.get() else message))
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after


def bounded(message: str) -> str:
    """The message, without its middle where it is longer than one is read."""
    if isinstance(message, Inside):
        return Inside(bounded(str(message)), bounded(message.plainly))
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE - _LAST_WORDS - 3]}...{message[-_LAST_WORDS:]}"


def quoted(value: object) -> str:
    """What a client wrote where a word is expected, short enough to be told in an error, whatever it is."""
    if isinstance(value, str):
        return repr(value[:60])
    return "null" if value is None else f"a {type(value).__name__}"


def as_api_error(error: Exception) -> ApiError:
    """Return the HTTP face of an error raised below; what nobody foresaw is a 500 that gives no details away."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return ApiError(
            error.status,
            words_of(error),
            kind=error.kind,
            code=error.code,
            param=error.param,
            retry_after=error.retry_after,
        )
    if isinstance(error, BadInput):
        return ApiError(error.status, words_of(error), code=error.code, param=error.param)
    if isinstance(error, RecursionError):  # nothing but what a client nests has a depth without bound
        return ApiError(400, "the request is nested too deeply")
    return ApiError(500, "the server failed on this request; its log says why", kind="server_error")


def openai_fields(error: ApiError) -> dict[str, Any]:
    """An error's fields as OpenAI names them."""
    return {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}


def error_body(error: ApiError) -> bytes:
    return msgspec.json.encode({"error": openai_fields(error)})


def error_event(error: ApiError) -> bytes:
    """An error as the last event of a stream, for a client that has been told 200 already."""
    return b"data: " + error_body(error) + b"\n\n"


def retry_after_header(error: ApiError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` in whole seconds where trying again makes sense; no header otherwise."""
    if error.retry_after is None:
        return []
    return [(b"retry-after", str(max(1, ceil(error.retry_after))).encode())]


def error_fields(body: bytes) -> Mapping[str, Any]:
    """The fields of an error in OpenAI's shape, or with only a message where the server has another; maybe none."""
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, IndexError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def error_param(body: bytes) -> str | None:
    """The field that another server's error names."""
    param = error_fields(body).get("param")
    return param[:LONGEST_QUOTE] if isinstance(param, str) else None


def error_message(body: bytes) -> str:
    """What another server's error says: its message, else its text, kept short."""
    message = str(error_fields(body).get("message") or "")[:LONGEST_QUOTE]
    return message or body[:LONGEST_QUOTE].decode(errors="replace").strip() or "no message"
