"""Spans as OTLP writes them, in protobuf's binary form and in JSON.

Field numbers and names: opentelemetry-proto, `trace/v1/trace.proto` and `common/v1/common.proto`; the JSON as
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding has it: ids in hexadecimal, enums as numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from weighbridge import __version__
from weighbridge.ticket.span import SpanName

Value = str | bool | int | float | tuple[str, ...]

SCOPE = "weighbridge"


class SpanKind(IntEnum):
    """What a span is in its trace."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Encoding(StrEnum):
    """How spans are written, by the standard's names."""

    PROTOBUF = "http/protobuf"
    JSON = "http/json"

    @property
    def content_type(self) -> str:
        return "application/json" if self is Encoding.JSON else "application/x-protobuf"


_ERROR = 2
#: Bits of `flags` behind those of the trace: whether the parent is of another process is known, and that it is.
_KNOWN, _REMOTE, _SAMPLED = 0x100, 0x200, 0x1


@dataclass(slots=True)
class TraceSpan:
    """What took place from `start` to `end`, in seconds since the epoch. `title`: what spans of its kind are called."""

    name: SpanName
    title: str
    kind: SpanKind
    start: float
    end: float
    attributes: dict[str, Value] = field(default_factory=dict)
    failed: bool = False

    @property
    def start_ns(self) -> int:
        return _nanoseconds(self.start)

    @property
    def end_ns(self) -> int:
        return max(_nanoseconds(self.end), self.start_ns)

    @property
    def flags(self) -> int:
        remote = self.kind is SpanKind.SERVER and bool(self.name.parent_id)
        return (_SAMPLED if self.name.sampled else 0) | _KNOWN | (_REMOTE if remote else 0)


def _nanoseconds(seconds: float) -> int:
    """Without the hundred nanoseconds that a product of this size would lose."""
    whole = int(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e9)


# -- JSON --------------------------------------------------------------------------------------------------


def as_json(spans: Iterable[TraceSpan], resource: Mapping[str, Value]) -> bytes:
    """The body of a request to a collector."""
    scope = {"name": SCOPE, "version": __version__}
    scoped = {"scope": scope, "spans": [_span_json(one) for one in spans]}
    whole = {"resource": {"attributes": _pairs(resource)}, "scopeSpans": [scoped]}
    return msgspec.json.encode({"resourceSpans": [whole]})


def _span_json(span: TraceSpan) -> dict[str, Any]:
    name = span.name
    told: dict[str, Any] = {
        "traceId": name.trace_id,
        "spanId": name.span_id,
        "flags": span.flags,
        "name": span.title,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _pairs(span.attributes),
        "status": {"code": _ERROR} if span.failed else {},
    }
    if name.parent_id:
        told["parentSpanId"] = name.parent_id
    if name.state:
        told["traceState"] = name.state
    return told


def _pairs(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value_json(value)} for name, value in attributes.items()]


#: How protobuf's JSON writes what JSON has no numbers for.
_ENDLESS = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


def _value_json(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _ENDLESS[str(value)]}
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [_value_json(one) for one in value]}}
    return {"stringValue": value}


# -- protobuf ----------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def as_protobuf(spans: Iterable[TraceSpan], resource: Mapping[str, Value]) -> bytes:
    """The same in binary."""
    scope = _text(1, SCOPE) + _text(2, __version__)
    scoped = _message(1, scope) + b"".join([_message(2, _span(one)) for one in spans])
    whole = _message(1, _attributes(1, resource)) + _message(2, scoped)
    return _message(1, whole)


def _span(span: TraceSpan) -> bytes:
    name = span.name
    parts = [
        _message(1, bytes.fromhex(name.trace_id)),
        _message(2, bytes.fromhex(name.span_id)),
        _text(3, name.state) if name.state else b"",
        _message(4, bytes.fromhex(name.parent_id)) if name.parent_id else b"",
        _text(5, span.title),
        _number(6, int(span.kind)),
        _key(7, _FIXED64) + struct.pack("<Q", span.start_ns),
        _key(8, _FIXED64) + struct.pack("<Q", span.end_ns),
        _attributes(9, span.attributes),
        _message(15, _number(3, _ERROR)) if span.failed else b"",
        _key(16, _FIXED32) + struct.pack("<I", span.flags),
    ]
    return b"".join(parts)


def _attributes(place: int, attributes: Mapping[str, Value]) -> bytes:
    pairs = [_text(1, name) + _message(2, _value(value)) for name, value in attributes.items()]
    return b"".join([_message(place, pair) for pair in pairs])


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return _number(2, int(value))
    if isinstance(value, int):
        return _number(3, value)
    if isinstance(value, float):
        return _key(4, _FIXED64) + struct.pack("<d", value)
    if isinstance(value, tuple):
        return _message(5, b"".join([_message(1, _value(one)) for one in value]))
    return _text(1, value)


def _text(place: int, text: str) -> bytes:
    return _message(place, text.encode("utf-8", "replace"))


def _message(place: int, body: bytes) -> bytes:
    return _key(place, _BYTES) + _varint(len(body)) + body


def _number(place: int, value: int) -> bytes:
    return _key(place, _VARINT) + _varint(value & (1 << 64) - 1)


def _key(place: int, kind: int) -> bytes:
    return _varint(place << 3 | kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encoded(spans: Sequence[TraceSpan], resource: Mapping[str, Value], encoding: Encoding) -> bytes:
    """The body of a request to a collector."""
    return as_json(spans, resource) if encoding is Encoding.JSON else as_protobuf(spans, resource)
