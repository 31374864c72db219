"""Names in the order of their costs, kept as costs change: who is cheapest is read off, not searched for."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator

#: Names that are copied at once while the order is walked.
_PIECE = 32


class CostOrder:
    """The cheapest first; of equal costs, the one that has been at it for longest, so that equals take turns.

    A change costs O(log n) comparisons and the move of a few kilobytes: 1 µs among 1,000.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, str]] = []  # sorted
        self._entry: dict[str, tuple[float, int, str]] = {}
        self._changes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entry

    def __iter__(self) -> Iterator[str]:
        """Yield names, the cheapest first. If something changes meanwhile, one may come twice and one be left out."""
        at = 0
        while piece := self._entries[at : at + _PIECE]:
            for _, _, name in piece:
                yield name
            at += _PIECE

    def set(self, name: str, cost: float) -> None:
        """Enter `name`, or move it to where it belongs with this cost."""
        before = self._entry.get(name)
        if before is not None:
            if before[0] == cost:
                return
            del self._entries[bisect_left(self._entries, before)]
        self._changes += 1
        entry = self._entry[name] = (cost, self._changes, name)
        insort(self._entries, entry)

    def discard(self, name: str) -> None:
        """Take `name` out, if it is there."""
        entry = self._entry.pop(name, None)
        if entry is not None:
            del self._entries[bisect_left(self._entries, entry)]

    def cost(self, name: str) -> float:
        """What was set for `name`; infinite where nothing was."""
        entry = self._entry.get(name)
        return math.inf if entry is None else entry[0]

    def check_integrity(self) -> None:
        """Raise AssertionError unless everybody is there once, in order."""
        if self._entries != sorted(self._entry.values()):
            raise AssertionError("the order is not that of the costs")
