"""Which different values the members of a fleet have: a thousand replicas have a few contexts and prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value", bound=Hashable)


class Varieties(Generic[Value]):
    """One value for each name. Iterating yields each different value once; all else is O(1)."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._counts: Counter[Value] = Counter()

    def __iter__(self) -> Iterator[Value]:
        return iter(self._counts)

    def set(self, name: str, value: Value) -> None:
        if name in self._values:
            if self._values[name] == value:
                return
            self.discard(name)
        self._values[name] = value
        self._counts[value] += 1

    def discard(self, name: str) -> None:
        """Forget `name`, if it is there."""
        if name not in self._values:
            return
        value = self._values.pop(name)
        self._counts[value] -= 1
        if not self._counts[value]:
            del self._counts[value]
