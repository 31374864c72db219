"""Whether a value has the type that its dataclass declares, all the way down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def check_fields(value: Any) -> None:
    """Raise AssertionError that names the first field of a dataclass that is not of its type."""
    for name, hint in _hints(type(value)).items():
        held = getattr(value, name)
        assert _fits(held, hint), f"{type(value).__name__}.{name} is {held!r}, not {hint}"


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is None or hint is NoneType:
        return value is None
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value if inner[1:] == (...,))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if not isinstance(hint, type):
        return True  # a protocol, a literal: not what files say
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_dataclass(hint) and isinstance(value, hint):
        check_fields(value)
    return isinstance(value, hint)
