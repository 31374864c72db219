"""A chat request as a route sees it: checked, weighed in bytes, its extension taken apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.routes.latency import most_prompt_tokens
from weighbridge.routes.privacy.fields import EDGE_ONLY, FORWARDED
from weighbridge.wire.ask import Ask, Placement

MAX_LABELS = 32
MEDIA_BYTES = 6000  # what a picture weighs: about 1,500 tokens at four bytes each


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """What a client sent. Sizes in UTF-8 bytes of all text that reaches the model."""

    body: Mapping[str, Any]
    tenant: str
    labels: frozenset[str]
    placement: Placement
    max_usd: float | None
    deadline_seconds: float | None
    size: int
    stream: bool
    include_usage: bool
    priority: int = 0

    @property
    def max_tokens(self) -> int | None:
        wanted = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        return int(wanted) if wanted else None

    @property
    def choices(self) -> int:
        return int(self.body.get("n") or 1)

    @property
    def most_prompt_tokens(self) -> int:
        return most_prompt_tokens(self.size, len(self.body["messages"]))

    @property
    def prompt(self) -> str:
        """The last user message: what is asked, and so what difficulty is judged by."""
        for message in reversed(self.body["messages"]):
            if message.get("role") == "user":
                return text_of(message)
        return text_of(self.body["messages"][-1])

    def needs(self) -> frozenset[str]:
        """Abilities that a side must have."""
        wanted = set()
        if self.body.get("tools") and self.body.get("tool_choice") != "none":
            wanted.add("tools")
        for message in self.body["messages"]:
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in ("image_url", "input_audio", "file"):
                    wanted.add({"image_url": "images", "input_audio": "audio", "file": "files"}[kind])
        return frozenset(wanted)

    def forwarded(self, *, edge: bool) -> dict[str, Any]:
        """The body for a side: known fields only."""
        allowed = FORWARDED | EDGE_ONLY if edge else FORWARDED
        return {key: value for key, value in self.body.items() if key in allowed and value is not None}


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def routed_request(ask: Ask) -> RoutedRequest:
    """What came in at the door, as a route sees it. Raises BadInput naming the field."""
    body = msgspec.json.decode(ask.as_body())
    _check(body)
    return RoutedRequest(
        body=body,
        tenant=ask.tenant,
        labels=ask.labels,
        placement=Placement(ask.placement),
        max_usd=ask.max_usd,
        deadline_seconds=None if ask.deadline_ms is None else ask.deadline_ms / 1e3,
        size=_size(body),
        stream=ask.stream,
        include_usage=ask.wants_usage,
        priority=ask.priority,
    )


def parse_request(body: Any, headers: Mapping[str, str], key_tenant: str | None = None) -> RoutedRequest:
    """Check a decoded body. `headers`: lower-case names. A key's tenant cannot be overridden.

    Raises BadInput naming the field.
    """
    if not isinstance(body, dict):
        raise BadInput("the request body must be a JSON object")
    _check(body)
    extension = _extension(body, headers)
    options = body.get("stream_options")
    return RoutedRequest(
        body=body,
        tenant=(key_tenant or extension.get("tenant") or body.get("user") or "default")[:200],
        labels=_labels(extension.get("labels")),
        placement=_placement(extension.get("placement")),
        max_usd=_positive(extension, "max_usd", least=0.0),
        deadline_seconds=_milliseconds(extension),
        size=_size(body),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        priority=round(_positive(extension, "priority", least=-1000.0) or 0),
    )


def _check(body: Mapping[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadInput("messages: must be a non-empty list of objects", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise BadInput(f"messages[{index}].role: must be a string", param="messages")
        if not isinstance(message.get("content"), str | list | None):
            raise BadInput(f"messages[{index}].content: must be a string or a list", param="messages")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"{name}: must be a whole number of at least 1", param=name)


def _extension(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """The body key `weighbridge` over `x-weighbridge-*` headers."""
    prefix = "x-weighbridge-"
    found: dict[str, Any] = {
        name.removeprefix(prefix).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(prefix)
    }
    inside = body.get("weighbridge")
    if inside is not None and not isinstance(inside, dict):
        raise BadInput("weighbridge: must be an object", param="weighbridge")
    found |= inside or {}
    for name in ("tenant", "placement"):
        if found.get(name) is not None and not isinstance(found[name], str):
            raise BadInput(f"weighbridge.{name}: must be a string", param="weighbridge")
    if body.get("user") is not None and not isinstance(body["user"], str):
        raise BadInput("user: must be a string", param="user")
    return found


def _labels(value: Any) -> frozenset[str]:
    """Labels come beside the prompt, never out of it."""
    if value is None:
        return frozenset()
    items = [one.strip() for one in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(one, str) for one in items):
        raise BadInput("weighbridge.labels: must be a list of strings", param="weighbridge")
    if len(items) > MAX_LABELS:
        raise BadInput(f"weighbridge.labels: at most {MAX_LABELS} can be given", param="weighbridge")
    return frozenset(one for one in items if one)


def _placement(value: str | None) -> Placement:
    if value is None:
        return Placement.AUTO
    try:
        return Placement(value)
    except ValueError:
        known = ", ".join(Placement)
        raise BadInput(
            f"weighbridge.placement: {value!r} is not one of {known}", param="weighbridge"
        ) from None


def _positive(extension: Mapping[str, Any], name: str, *, least: float) -> float | None:
    value = extension.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not least <= number < 1e12:
        raise BadInput(
            f"weighbridge.{name}: must be a number of at least {least:g}, not {value!r}", param="weighbridge"
        )
    return number


def _milliseconds(extension: Mapping[str, Any]) -> float | None:
    value = _positive(extension, "deadline_ms", least=1.0)
    return None if value is None else value / 1000


def _size(body: Mapping[str, Any]) -> int:
    """Bytes of all strings in what the model reads, keys included; pictures and sound at a flat rate."""

    def measure(value: Any) -> int:
        if isinstance(value, str):
            return len(value.encode("utf-8", "surrogatepass"))
        if isinstance(value, dict):
            if value.get("type") in ("image_url", "input_audio"):
                return MEDIA_BYTES
            return sum(measure(key) + measure(one) + 4 for key, one in value.items())
        if isinstance(value, list):
            return sum(measure(one) + 2 for one in value)
        return 8

    return measure(body.get("messages")) + measure(body.get("tools")) + measure(body.get("response_format"))
