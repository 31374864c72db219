"""What a server behind this one says of its errors, for those who do not run it: that it failed, and who knows why.

Its own words may name files, addresses and accounts. What is wrong with the request itself they are told as it was
said, and servers of ours choose their words as we do here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from weighbridge.wire.errors import ApiError, error_body, error_event, error_fields, told_plainly

#: What is said with one of these is about the request.
REQUESTS_OWN = frozenset({400, 404, 405, 409, 410, 413, 415, 422})
#: The dialect of servers of ours.
_OURS = "weighbridge"
#: An event that is an error, in a chunk of whole events.
_ERROR = re.compile(rb"(?m)^data: ?(\{\s*\"error\".*)\r?$")
#: Characters of a code or a type; a longer one is no word of an API.
_LONGEST_WORD = 64
#: What an error within a stream counts as.
_IN_STREAM = 500
_PLAIN_HEADERS = frozenset({"retry-after", "retry-after-ms", "x-request-id", "x-weighbridge-ticket"})


def is_shown(dialect: str, status: int) -> bool:
    """Whether the client is told what a server of this dialect says with an error of this status."""
    return not told_plainly.get() or status in REQUESTS_OWN or dialect == _OURS


def plain_body(status: int, body: bytes, ticket: str) -> bytes:
    """What the client is told in place of the body of an error; the operator finds the rest in `ticket`."""
    return error_body(_plain(status, body, ticket))


def plain_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that go with it: when to come back, and how the server named the request."""
    return {name: value for name, value in headers.items() if name in _PLAIN_HEADERS}


def shown_events(dialect: str, chunk: bytes, ticket: str) -> bytes:
    """Whole events in which one is an error, as they go to the client."""
    if is_shown(dialect, _IN_STREAM):
        return chunk

    def plain(event: re.Match[bytes]) -> bytes:
        return error_event(_plain(_IN_STREAM, event[1], ticket)).rstrip(b"\n")

    return _ERROR.sub(plain, chunk)


def _plain(status: int, body: bytes, ticket: str) -> ApiError:
    fields = error_fields(body)
    message = f"a server behind this one failed; who runs this one sees why in ticket {ticket}"
    kind = _word(fields.get("type")) or "server_error"
    return ApiError(status, message, kind=kind, code=_word(fields.get("code")))


def _word(value: object) -> str | None:
    """A code or type that is one word, as programs look for it."""
    is_word = (
        isinstance(value, str) and len(value) <= _LONGEST_WORD and re.fullmatch(r"[\w.-]+", value, re.ASCII)
    )
    return str(value) if is_word else None
