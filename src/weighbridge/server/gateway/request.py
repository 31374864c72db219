"""From an HTTP request to an `Ask`: what the gateway must know of it, and the client's own bytes for the rest."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.server.protocol import Extension, Positive, StreamOptions
from weighbridge.wire.ask import Ask, Fields
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

#: The endpoints that are passed on to replicas.
PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

#: Headers of clients that go on to replicas: tracing, and nothing that belongs to this connection or its key.
_PASSED = frozenset(
    {"x-request-id", "traceparent", "tracestate", "baggage", "openai-organization", "openai-project"}
)

_TICKET = re.compile("[0-9a-f]{32}")

_decode_fields = msgspec.json.Decoder(Fields).decode


class GatewayExtension(Extension, forbid_unknown_fields=True):
    """The body key `weighbridge`, with what only a gateway can do."""

    route: Annotated[str, Meta(max_length=200)] | None = None
    session: Annotated[str, Meta(max_length=200)] | None = None
    resume: bool | None = None


class Peek(Struct):
    """The fields a gateway reads. All others pass unseen."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    user: str | None = None
    weighbridge: GatewayExtension | None = None


Headers = dict[str, str]


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


async def read_all(receive: Receive, declared: str, limit: int) -> bytes:
    """The body, never more than `limit` bytes of it. Raises ApiError 413, or 400 when the client went away."""
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts, size = [], 0
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise ApiError(400, "the connection closed before the body was complete")


def _too_large(limit: int) -> ApiError:
    message = f"the request body is larger than the {limit} bytes this gateway takes; send less"
    return ApiError(413, message, code="body_too_large")


def read_ask(path: str, body: bytes, headers: Headers, key_tenant: str | None, now: float) -> Ask:
    """Raises ApiError 400 naming the field that is wrong. `now` is the gateway's clock."""
    peek = decode(body, Peek)
    fields = _decode_fields(body)
    extension = peek.weighbridge or GatewayExtension()
    given = {
        n.removeprefix("x-weighbridge-"): v for n, v in headers.items() if n.startswith("x-weighbridge-")
    }
    _check_placement(extension.placement or given.get("placement"))
    deadline_ms = extension.deadline_ms or _number(given, "deadline-ms")
    priority = extension.priority if extension.priority is not None else int(_number(given, "priority") or 0)
    tenant = key_tenant or extension.tenant or given.get("tenant") or peek.user or "default"
    resume = extension.resume if extension.resume is not None else _flag(given.get("resume"))
    speculative = extension.speculative
    return Ask(
        id=_ticket_id(given.get("ticket")),
        path=path,
        fields=fields,
        model=peek.model or "",
        tenant=tenant[:200],
        stream=bool(peek.stream),
        wants_usage=peek.stream_options is not None and peek.stream_options.include_usage,
        max_tokens=peek.max_completion_tokens or peek.max_tokens,
        choices=(peek.n or 1) * _prompts(path, fields),
        priority=max(-1000, min(priority, 1000)),
        deadline=None if deadline_ms is None else now + deadline_ms / 1e3,
        route=(extension.route or given.get("route") or path.rsplit("/v1/", 1)[-1])[:200],
        session=(extension.session or given.get("session") or "")[:200],
        resume=resume,
        speculative=bool(_flag(given.get("speculative")) if speculative is None else speculative),
        headers={name: value for name, value in headers.items() if name in _PASSED},
    )


def _ticket_id(proposed: str | None) -> str:
    """What the client proposes, so that it can ask for its ticket before an answer has begun; else a fresh one.

    Whether it is in use already is the gateway's to see.
    """
    if proposed is not None and _TICKET.fullmatch(proposed):
        return proposed
    return uuid.uuid4().hex


def _prompts(path: str, fields: Fields) -> int:
    """How many prompts a completion has: each gets its own output."""
    raw = fields.get("prompt")
    if path != "/v1/completions" or raw is None or not bytes(raw).startswith(b"["):
        return 1
    value = msgspec.json.decode(raw)
    return max(len(value), 1) if all(not isinstance(one, int) for one in value) else 1


def _check_placement(placement: str | None) -> None:
    if placement == "only_cloud":
        message = "placement: this gateway chooses by load alone; use only_edge or prefer_edge"
        raise ApiError(400, message, param="weighbridge")


def _number(headers: Headers, name: str) -> float | None:
    if name not in headers:
        return None
    try:
        value = float(headers[name])
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12 or (name == "deadline-ms" and value <= 0):
        raise ApiError(400, f"header x-weighbridge-{name}: {headers[name]!r} is not usable")
    return value


def _flag(value: str | None) -> bool | None:
    return None if value is None else value.lower() in ("1", "true", "yes")


def created() -> int:
    """Epoch seconds, for `/v1/models`."""
    return int(time.time())
