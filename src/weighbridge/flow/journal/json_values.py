"""Results as JSON, for a journal: what comes back must be what went in."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import msgspec

from weighbridge.errors import BadInput

_hints: dict[Any, Any] = {}


def return_type(function: Callable[..., Any]) -> Any:
    """Return the return annotation of a function, or Any."""
    if function not in _hints:
        try:
            _hints[function] = typing.get_type_hints(function).get("return", Any)
        except Exception:
            _hints[function] = Any
    return _hints[function]


def encode(value: Any, kind: Any, what: str) -> bytes:
    """Return `value` as JSON. Raises BadInput when reading it back as `kind` would not give the same."""
    try:
        pydantic = hasattr(value, "model_dump_json")
        data: bytes = value.model_dump_json().encode() if pydantic else msgspec.json.encode(value)
        again = decode(data, kind)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise BadInput(f"{what} cannot be journaled as JSON ({error}); return plain data") from error
    if type(again) is not type(value) or (again != value and msgspec.json.encode(again) != data):
        name = type(value).__name__
        raise BadInput(f"{what} is a {name} that JSON does not give back; annotate its return type as {name}")
    return data


def decode(data: bytes, kind: Any) -> Any:
    """Return the value that `encode` wrote."""
    if hasattr(kind, "model_validate_json"):
        return kind.model_validate_json(data)
    return msgspec.json.decode(data, type=kind)


def shown(value: Any) -> str:
    """Return arguments for people to read: JSON where possible."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        return repr(value)
