"""Request headers as one reads them: lower-case names, repeated lines joined."""

from __future__ import annotations

from collections.abc import Iterable

Headers = dict[str, str]

#: Headers of clients that go on to replicas: tracing, and nothing that belongs to this connection or its key.
PASSED_ON = frozenset(
    {"x-request-id", "traceparent", "tracestate", "baggage", "openai-organization", "openai-project"}
)

#: The prefix of our own headers.
OURS = "x-weighbridge-"


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers by name. Several lines of one name become one, with commas between, as HTTP has it.

    HTTP knows Latin-1 alone; our own headers may be UTF-8, as the same words in the body are.
    """
    headers: Headers = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if not value.isascii() and key.startswith(OURS):
            text = _utf8(value) or text
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _utf8(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
