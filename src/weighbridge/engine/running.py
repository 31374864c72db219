"""The requests that run, by rank: who advances first, and who gives way."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from weighbridge.engine.request import Request


class RunningSet:
    """Rank is (class, arrival, id): urgent before not, early before late, and never a tie.

    The class is the one a request was admitted in: its own, or a better one when ageing lifted it. So a
    lifted request is not preempted at once by the class it was lifted past.
    """

    def __init__(self) -> None:
        self._by_rank: list[Request] = []
        self._lifted: dict[Request, int] = {}

    def __len__(self) -> int:
        return len(self._by_rank)

    def __iter__(self) -> Iterator[Request]:
        """Highest rank first; the set may change meanwhile."""
        return iter(tuple(self._by_rank))

    @property
    def lowest(self) -> Request:
        return self._by_rank[-1]

    def add(self, request: Request, priority: int) -> None:
        """`request` runs from now on, in class `priority`."""
        if priority != request.priority:
            self._lifted[request] = priority
        insort(self._by_rank, request, key=self._rank)

    def remove(self, request: Request) -> None:
        self._by_rank.remove(request)
        self._lifted.pop(request, None)

    def below(self, priority: int) -> Iterator[Request]:
        """Requests less urgent than class `priority`, lowest rank first: those it may make give way."""
        for request in reversed(self._by_rank):
            if self._class(request) <= priority:
                return
            yield request

    def _class(self, request: Request) -> int:
        return self._lifted.get(request, request.priority)

    def _rank(self, request: Request) -> tuple[int, float, str]:
        return self._class(request), request.arrival, request.id
