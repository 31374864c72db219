"""Typed access to the fields of a model's configuration: every read says what it wanted. Torch is not needed.

And what the name of a file says of the files beside it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput

#: More than any count of a model is, and as much as the kernels' 32-bit sizes hold.
MAX_COUNT = 2**31 - 1
#: More layers than any model has: what is made for each layer stays small.
MAX_LAYERS = 10_000
#: The kernels compute in float32: larger numbers are infinite there.
MAX_NUMBER = 3.4e38

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80

#: A part of a model in several files, as llama.cpp splits it.
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def shown(value: object) -> str:
    """Return `value` as a message can show it, whatever its size: on one line, cut where it is long."""
    return _repr.repr(value)


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

    def whole(self, *names: str, default: int | None = None, min: int = 1, max: int = MAX_COUNT) -> int:
        """Return the count under the first of `names` that is there, or else `default`."""
        value = self.get(*names)
        return whole_number(default if value is None else value, names[0], self.where, min, max)

    def layers(self, *names: str) -> int:
        """Return the number of layers under the first of `names`, which is small enough to count them one by one."""
        return self.whole(*names, max=MAX_LAYERS)

    def number(self, name: str, default: float) -> float:
        """Return a finite number, or `default` where there is none."""
        value = self.get(name)
        return default if value is None else finite_number(value, name, self.where)

    def positive(self, name: str, default: float) -> float:
        """Return a finite number above 0, or `default` where there is none."""
        value = self.number(name, default)
        if value <= 0:
            raise BadInput(f"{self.where}: {name} must be above 0, not {value}", param=name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a yes or no, which may also be written as a number."""
        value = self.get(name)
        if value is not None and not isinstance(value, int | float):
            raise BadInput(f"{self.where}: {name} is {shown(value)}, not true or false", param=name)
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


def whole_number(value: Any, name: str, where: str, min: int = 1, max: int = MAX_COUNT) -> int:
    """Return `value` as a whole number from `min`, which is 0 or 1, to `max`. Raises BadInput otherwise."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and min <= value <= max:
        return int(value)
    if whole and value > max:
        raise BadInput(f"{where}: {name} is {shown(value)}, more than the {max} there can be", param=name)
    wanted = "a positive whole number" if min else "a whole number of at least 0"
    says = f"is missing; it must be {wanted}" if value is None else f"must be {wanted}, not {shown(value)}"
    raise BadInput(f"{where}: {name} {says}", param=name)


def finite_number(value: Any, name: str, where: str) -> float:
    """Return `value` as a number that float32 can hold. Raises BadInput for others and for what is no number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN is in no range
        raise BadInput(f"{where}: {name} is {shown(value)}, not a number that can be used", param=name)
    return float(value)


def part_files(path: Path) -> list[Path]:
    """Return all files of a model by the name of any of them; it alone where its name is no part's."""
    named = _PART.fullmatch(path.name)
    count = int(named[3]) if named else 1
    if named is None or not 1 <= int(named[2]) <= count:
        return [path]
    return [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
