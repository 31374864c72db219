"""The name of a span in a distributed trace, as W3C Trace Context writes it in `traceparent` and `tracestate`.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import urandom

PARENT, STATE = "traceparent", "tracestate"
#: Headers that tell a server which trace a request belongs to.
TRACE_HEADERS = frozenset({PARENT, STATE})
#: Characters and members of a `tracestate` that are kept; the standard asks for as many.
LONGEST_STATE, MOST_MEMBERS = 512, 32

_PARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_NO_TRACE, _NO_SPAN, _NO_VERSION = "0" * 32, "0" * 16, "ff"
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class SpanName:
    """A span: its trace, itself, and the one that it is below (empty: the first of its trace). `sampled`: it is kept.

    `state`: what other tracing systems let travel along.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    sampled: bool = True
    state: str = ""

    def child(self) -> SpanName:
        """A new span below this one."""
        return SpanName(self.trace_id, new_span_id(), self.span_id, self.sampled, self.state)

    def headers(self) -> dict[str, str]:
        """What tells another server that this span waits for it."""
        told = {PARENT: f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"}
        if self.state:
            told[STATE] = self.state
        return told

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types, for tickets and logs."""
        return {
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "parent_id": self.parent_id,
            "sampled": self.sampled,
        }


def new_trace_id() -> str:
    """128 random bits, never all zero."""
    while (name := urandom(16).hex()) == _NO_TRACE:
        pass
    return name


def new_span_id() -> str:
    """64 random bits, never all zero."""
    while (name := urandom(8).hex()) == _NO_SPAN:
        pass
    return name


def read_parent(headers: Mapping[str, str]) -> SpanName | None:
    """The span of the caller that its headers name; None where they name none, or not as the standard has it."""
    match = _PARENT.fullmatch(headers.get(PARENT, "").strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == _NO_VERSION or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    sampled = bool(int(flags, 16) & _SAMPLED)
    return SpanName(trace_id, span_id, sampled=sampled, state=_state(headers.get(STATE, "")))


def _state(text: str) -> str:
    """The members of a `tracestate` that there is room for, the latest first; nothing where one is no member."""
    members = [one.strip() for one in text.split(",") if one.strip()] if len(text) <= 1 << 14 else []
    if any(_MEMBER.fullmatch(one) is None for one in members):
        return ""
    members = members[:MOST_MEMBERS]
    while members and len(",".join(members)) > LONGEST_STATE:
        members.pop()
    return ",".join(members)
