"""Request headers as one reads them: lower-case names, repeated lines joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weighbridge.secret import Secret
from weighbridge.wire.errors import ApiError

Headers = dict[str, str]

#: Headers of clients that go on to replicas: tracing, and nothing that belongs to this connection or its key.
PASSED_ON = frozenset(
    {"x-request-id", "traceparent", "tracestate", "baggage", "openai-organization", "openai-project"}
)

#: Characters of a request's name that are said back.
LONGEST_ID = 200
#: The prefix of our own headers.
OURS = "x-weighbridge-"
#: Those of ours that name one thing, of which two lines would make a third.
_NAMES = frozenset(OURS + name for name in ("tenant", "route", "session"))


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers by name, as a server gives them: names in lower case. Several lines of one name become one, with commas
    between, as HTTP has it.

    HTTP knows Latin-1 alone; our own headers may be UTF-8, as the same words in the body are. Raises ApiError 400 for
    a name that is given twice.
    """
    lines = list(raw)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in lines}
    if len(headers) == len(lines) and b"".join(value for _, value in lines).isascii():
        return headers  # as nearly always
    headers = {}
    for name, value in lines:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        if not value.isascii() and key.startswith(OURS):
            text = _utf8(value) or text
        if key in headers:
            if key in _NAMES:
                raise ApiError(
                    400, f"header {key} is there twice, and names one {key.removeprefix(OURS)}: send one line"
                )
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers


def request_id(headers: Mapping[str, str]) -> str:
    """The name that a client gave its request; empty where it gave none."""
    return headers.get("x-request-id", "")[:LONGEST_ID]


def bearer_of(key: Secret) -> str:
    """The value of `Authorization` that sends a key: its UTF-8, each byte a character, as headers are written."""
    return "Bearer " + key.reveal().encode("utf-8", "surrogateescape").decode("latin-1")


def _utf8(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
