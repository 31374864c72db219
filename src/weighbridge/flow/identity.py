"""What makes two calls the same call: arguments as hashable values in memory, as a digest in a journal."""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

#: Called with every argument that is a promise or a guess; returns what stands for it in the key.
Replace = Callable[[Any], Hashable]

_PLAIN = (str, type(None), bytes)


class Pending:
    """Base of values that are not there yet. In a key, `Replace` says what stands in their place."""

    __slots__ = ()


class Identity:
    """Stands for an object that has no value to compare: equal only to itself, and kept alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def freeze(value: Any, replace: Replace | None = None) -> Hashable:
    """Return something hashable that is equal exactly when the values are: 1, 1.0 and True differ."""
    kind = type(value)
    if kind in _PLAIN:
        return value  # type: ignore[no-any-return]
    if kind is int or kind is float or kind is bool:
        return (kind.__name__, value)
    if kind is list or kind is tuple:
        return (kind.__name__, *[freeze(item, replace) for item in value])
    if kind is dict:
        return ("dict", *sorted(((freeze(k), freeze(v, replace)) for k, v in value.items()), key=_order))
    if isinstance(value, Pending):
        return Identity(value) if replace is None else replace(value)
    return _freeze_object(value, replace)


def freeze_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], replace: Replace | None = None) -> Hashable:
    """Return the arguments of a call as a key. Keyword and positional arguments differ."""
    frozen = tuple([freeze(item, replace) for item in args])
    if not kwargs:
        return frozen
    return (frozen, *[(name, freeze(kwargs[name], replace)) for name in sorted(kwargs)])


def _order(pair: tuple[Hashable, Hashable]) -> str:
    return repr(pair[0])


def _freeze_object(value: Any, replace: Replace | None) -> Hashable:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    key = getattr(value, "__flow_key__", None)
    if key is not None:
        return key  # type: ignore[no-any-return]
    if isinstance(value, Enum):
        return (name, value.name)
    if isinstance(value, set | frozenset):
        return (kind.__name__, frozenset(freeze(item) for item in value))
    if is_dataclass(value):
        return (name, *[freeze(getattr(value, field.name), replace) for field in fields(value)])
    if hasattr(kind, "__struct_fields__"):
        return (name, *[freeze(getattr(value, field), replace) for field in kind.__struct_fields__])
    if callable(getattr(value, "model_dump", None)):
        return (name, freeze(value.model_dump(), replace))
    if isinstance(value, types.FunctionType):
        return _freeze_function(value, replace)
    return Identity(value)


def _freeze_function(function: types.FunctionType, replace: Replace | None) -> Hashable:
    """A lambda that is made anew stays the same if its code and what it captured do."""
    captured = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    return (
        "function",
        function.__code__,
        freeze(dict(captured), replace),
        freeze(function.__defaults__, replace),
    )


def contains_identity(frozen: Hashable) -> Any | None:
    """Return the first object in a frozen key that exists only in this process; None if there is none."""
    if isinstance(frozen, Identity):
        return frozen.value
    if isinstance(frozen, (tuple, frozenset)):  # a union of types would be made anew by each call
        for part in frozen:
            unstable = contains_identity(part)
            if unstable is not None:
                return unstable
    return None


def digest(frozen: Hashable) -> str:
    """Return 128 bits of a frozen key, equal in every process."""
    return hashlib.blake2b(_text(frozen).encode(), digest_size=16).hexdigest()


def _text(frozen: Hashable) -> str:
    if isinstance(frozen, tuple):
        return "(" + ",".join(map(_text, frozen)) + ")"
    if isinstance(frozen, frozenset):
        return "{" + ",".join(sorted(map(_text, frozen))) + "}"
    if isinstance(frozen, types.CodeType):
        return f"code {frozen.co_qualname} {hashlib.blake2b(frozen.co_code, digest_size=8).hexdigest()}"
    return repr(frozen)


def substitute(value: Any, value_of: Callable[[Any], Any]) -> Any:
    """Return `value` with `value_of(part)` for every pending part; lists, tuples and dicts are looked into."""
    if isinstance(value, Pending):
        return value_of(value)
    kind = type(value)
    if kind is list:
        return [substitute(item, value_of) for item in value]
    if kind is tuple:
        return tuple(substitute(item, value_of) for item in value)
    if kind is dict:
        return {key: substitute(item, value_of) for key, item in value.items()}
    return value
