"""Typed access to config.json: every read says what it wanted, and remembers what it had to assume."""

from __future__ import annotations

from typing import Any

from weighbridge.errors import BadInput


class Fields:
    """The fields of one config.json object. Missing fields with a default are stated as assumptions on request."""

    def __init__(self, values: dict[str, Any], assumptions: list[str] | None = None) -> None:
        self.values = values
        self.assumptions: list[str] = [] if assumptions is None else assumptions

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, *names: str) -> Any:
        """The first of `names` that is there and not null."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return None

    def whole(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A count under the first of `names` that is there. Raises BadInput naming the field."""
        value = self.get(*names)
        if value is None:
            value = default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            what = "is missing" if value is None else f"is {value!r}"
            wanted = "a positive whole number" if least else "a whole number"
            raise BadInput(f"config.json: {names[0]} {what}; the plan needs {wanted} there", param=names[0])
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise BadInput(f"config.json: {name} is {value!r}, not a number", param=name)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        return default if value is None else bool(value)

    def listed(self, name: str, length: int) -> list[Any] | None:
        """A list with one entry per layer, or None when there is none. A longer list is cut (draft layers)."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise BadInput(f"config.json: {name} must list all {length} layers", param=name)
        return value[:length]

    def inner(self, *names: str) -> Fields | None:
        """A nested object, sharing this one's assumptions."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise BadInput(f"config.json: {names[0]} must be an object", param=names[0])
        return Fields(value, self.assumptions)

    def assume(self, sentence: str) -> None:
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)
