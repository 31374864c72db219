"""Typed access to the fields of a model's configuration: every read says what it wanted. Torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weighbridge.errors import BadInput


class Fields:
    """The fields of one object of a `config.json`, or of a file that says the same; null counts as missing.

    `where` begins every message. Every reader raises BadInput that names the field.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, *names: str) -> Any:
        """Return the first of `names` that is there, of whatever type, or None."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return None

    def whole(self, *names: str, default: int | None = None, min: int = 1) -> int:
        """Return the count under the first of `names` that is there, or else `default`."""
        value = self.get(*names)
        return whole_number(default if value is None else value, names[0], self.where, min)

    def number(self, name: str, default: float) -> float:
        """Return a number, or `default` where there is none."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise BadInput(f"{self.where}: {name} is {value!r}, not a number", param=name)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return whether the field is set to anything that counts as true."""
        value = self.get(name)
        return default if value is None else bool(value)

    def listed(self, name: str, length: int) -> list[Any] | None:
        """Return a list with an entry for each layer, or None. A longer list is cut: draft layers come last."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise BadInput(f"{self.where}: {name} must list all {length} layers", param=name)
        return value[:length]

    def nested(self, *names: str) -> dict[str, Any] | None:
        """Return the object under the first of `names` that is there, or None."""
        value = self.get(*names)
        if value is not None and not isinstance(value, dict):
            raise BadInput(f"{self.where}: {names[0]} must be an object", param=names[0])
        return value


def whole_number(value: Any, name: str, where: str, min: int = 1) -> int:
    """Return `value` as a whole number of at least `min`, which is 0 or 1. Raises BadInput otherwise."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= min:
        return value
    wanted = "a positive whole number" if min else "a whole number of at least 0"
    says = f"is missing; it must be {wanted}" if value is None else f"must be {wanted}, not {value!r}"
    raise BadInput(f"{where}: {name} {says}", param=name)
