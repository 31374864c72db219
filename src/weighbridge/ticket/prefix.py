"""Where a prompt left the one before it, as one of our servers tells the gateway in front of it. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

HEADER = "x-weighbridge-prefix"
#: Characters of the header; what is shown of prompts in it is a few tokens.
LONGEST = 4_096


class _Told(Struct):
    left_at_token: int
    stood: str
    stands: str
    tokens_behind: int
    ms: float | None = None


def written(prefix: dict[str, Any]) -> bytes:
    """The header's value, which is ASCII; empty where it would be longer than a header should be."""
    value = json.dumps(prefix, separators=(",", ":")).encode("ascii")
    return value if len(value) <= LONGEST else b""


def read(value: str) -> dict[str, Any] | None:
    """What a ticket has of it; None for what no server of ours has written."""
    if not value or len(value) > LONGEST:
        return None
    try:
        told: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(value, type=_Told))
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # a ValidationError is a DecodeError
        return None
    return told
