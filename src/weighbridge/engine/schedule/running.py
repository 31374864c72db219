"""The requests that run, by rank: who advances first, and who gives way."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator

from weighbridge.engine.request import SPARE_CLASS, Request
from weighbridge.engine.schedule.fairness import Seats

_NO_SEATS = Seats()


class RunningSet:
    """Rank is (class, arrival, id): urgent before not, early before late, and never a tie.

    The class is the one a request competes in: its own, or a better one when ageing lifted it, in the queue
    or here. So a lifted request is not preempted at once by the class it was lifted past.
    """

    def __init__(self) -> None:
        self._by_rank: list[Request] = []
        self._lifted: dict[Request, int] = {}
        self._unserved_since: dict[Request, float] = {}  # prompts under way: when each last got a chunk
        self._seats: dict[int, Seats] = {}  # of each class

    def __len__(self) -> int:
        return len(self._by_rank)

    def __iter__(self) -> Iterator[Request]:
        """Highest rank first; the set may change meanwhile."""
        return iter(tuple(self._by_rank))

    @property
    def highest(self) -> Request:
        return self._by_rank[0]

    @property
    def lowest(self) -> Request:
        return self._by_rank[-1]

    def stand_aside(self) -> bool:
        """Whether requests that get only what is spare have to wait: one runs that gets more."""
        return bool(self._by_rank) and self._by_rank[0].priority < SPARE_CLASS

    def add(self, request: Request, priority: int, now: float) -> None:
        """Add `request`, which runs from now on in class `priority`."""
        self._unserved_since[request] = now
        self._insert(request, priority)

    def served(self, request: Request, now: float, *, done: bool) -> None:
        """Note that a prompt under way got a chunk; with `done` it was the last."""
        if done:
            self._unserved_since.pop(request, None)
        else:
            self._unserved_since[request] = now

    def lift_unserved(self, since: float) -> None:
        """Let prompts under way that got nothing after `since` compete in the most urgent class from now on."""
        for request in [r for r, served in self._unserved_since.items() if served <= since]:
            if request.priority >= SPARE_CLASS:
                continue
            self._by_rank.remove(request)
            self._seats[self.priority(request)].give_back(request.tenant)
            best = self.priority(self._by_rank[0]) if self._by_rank else self.priority(request)
            self._insert(request, min(best, self.priority(request)))

    def _insert(self, request: Request, priority: int) -> None:
        if priority != request.priority:
            self._lifted[request] = priority
        insort(self._by_rank, request, key=self._rank)
        if priority not in self._seats:
            self._seats[priority] = Seats()
        self._seats[priority].take(request.tenant)

    def remove(self, request: Request) -> None:
        self._by_rank.remove(request)
        priority = self.priority(request)
        seats = self._seats[priority]
        seats.give_back(request.tenant)
        if not seats.most:
            del self._seats[priority]
        self._lifted.pop(request, None)
        self._unserved_since.pop(request, None)

    def priority(self, request: Request) -> int:
        """The class `request` runs in."""
        return self._lifted.get(request, request.priority)

    def below(self, priority: int) -> Iterator[Request]:
        """Yield the requests less urgent than class `priority`, lowest rank first: those that may have to give way."""
        for request in reversed(self._by_rank):
            if self.priority(request) <= priority:
                return
            yield request

    def seats(self, priority: int | None) -> Seats:
        """The seats that are taken in class `priority`, by tenant; to be looked at."""
        return _NO_SEATS if priority is None else self._seats.get(priority, _NO_SEATS)

    def of_class(self, priority: int) -> Iterator[Request]:
        """Yield the requests of class `priority`, lowest rank first; the set may change meanwhile."""
        return (request for request in self._by_rank[::-1] if self.priority(request) == priority)

    def check_integrity(self) -> None:
        """Raise AssertionError unless the seats by class and tenant are those of the requests that run."""
        taken: dict[int, Counter[str]] = {}
        for request in self._by_rank:
            taken.setdefault(self.priority(request), Counter())[request.tenant] += 1
        for priority, seats in self._seats.items():
            seats.check_integrity(dict(taken.pop(priority, Counter())))
        if taken:
            raise AssertionError("seats of a class are not counted")

    def _rank(self, request: Request) -> tuple[int, float, str]:
        return self.priority(request), request.arrival, request.id
