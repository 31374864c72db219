"""The waiting line: strict priority classes, fair over tenants inside a class, first come inside a tenant.

    class 0    tenant a: r1 r4        the tenant with the least service so far goes first (VTC)
               tenant b: r2
    class 5    tenant a: r3 r5        only when class 0 is empty, or when it is this class's turn: a class
                                      that got nothing for `ageing_seconds` may send one request

Nor does one tenant fill the line: when it is full, who has less than their share waiting is let in all the same.

Ageing bounds starvation without upsetting the order: under a flood of urgent work, each lower class still
gets one request admitted per `ageing_seconds`, and that request competes in the class it was lifted to.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from weighbridge.engine.request import SPARE_CLASS, Request, RequestState
from weighbridge.engine.schedule.fairness import VirtualTokenCounters
from weighbridge.engine.schedule.places import NOTHING, Backlog, KeptPlaces

#: Classes remembered while nothing of theirs waits; priorities are the clients' to choose, memory is ours.
MAX_IDLE_CLASSES = 256


class Queued(Protocol):
    """What the line needs to know about an entry: the engine's requests and the gateway's arrivals have it."""

    @property
    def id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...


Item = TypeVar("Item", bound=Queued)


@dataclass(slots=True)
class _Waiting(Generic[Item]):
    request: Item
    tokens: int  # what it weighs: tokens still to be computed for it
    held: bool  # not eligible yet


@dataclass(slots=True)
class _Class(Generic[Item]):
    counters: VirtualTokenCounters = field(default_factory=VirtualTokenCounters)
    tenants: dict[str, OrderedDict[str, Item]] = field(default_factory=dict)
    #: When each of the tenants last sent a request, or began to have one waiting; the earliest first.
    tenants_unserved: OrderedDict[str, float] = field(default_factory=OrderedDict)
    unserved_since: float = 0.0  # when it last sent a request, or began to have one waiting


class FairQueue(Generic[Item]):
    """Waiting requests. All operations are O(log n) or better; totals are kept as requests come and go.

    Prompt tokens are charged to their tenant when a request is admitted, but only those that must be
    computed: counters measure service received, and a prefix hit takes none, so sharing a prompt pays off.
    Output tokens are charged as they are produced. Work repeated after a preemption is not charged:
    preempting was our decision.
    """

    def __init__(
        self, input_weight: float = 1.0, output_weight: float = 2.0, ageing_seconds: float | None = 30.0
    ) -> None:
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._ageing_seconds = ageing_seconds
        self._classes: dict[int, _Class[Item]] = {}
        self._order: list[int] = []  # classes with eligible requests, most urgent first
        self._by_service: OrderedDict[int, None] = OrderedDict()  # the same, unserved longest first
        self._waiting: dict[str, _Waiting[Item]] = {}
        self._backlogs: dict[str, Backlog] = {}  # by tenant
        self.kept = KeptPlaces()
        self.num_tokens = 0  # tokens still to be computed for all that wait

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Item]:
        return (waiting.request for waiting in self._waiting.values())

    def backlog(self, tenant: str) -> Backlog:
        """What `tenant` has waiting, in all classes."""
        return self._backlogs.get(tenant, NOTHING)

    def is_full_for(
        self, tenant: str, tokens: float, max_requests: int, max_tokens: int | None, requests: int = 1
    ) -> bool:
        """Whether `tenant` has to stay outside with `requests` of `tokens` in all: the line is full, and it has its
        share. Places that are kept count as taken.

        The share is the bound over all that wait. So with `n` tenants the line holds at most 1 + 1/2 + ... + 1/n times
        its bounds, and nobody is kept out by what others have waiting.
        """
        kept = self.kept.total
        count, work = len(self._waiting) + kept.requests + requests, self.num_tokens + kept.tokens + tokens
        heavy = max_tokens is not None and count > 1 and work > max_tokens
        if count <= max_requests and not heavy:
            return False
        own = self.backlog(tenant) + self.kept.of(tenant)
        sharers = len(self._backlogs.keys() | self.kept.by_tenant.keys() | {tenant})
        if own.requests + requests > max_requests // sharers:
            return True
        few = own.requests + requests == 1
        return max_tokens is not None and not few and own.tokens + tokens > max_tokens / sharers

    def by_class(self) -> dict[tuple[int, str], Backlog]:
        """What waits, by class and tenant, with what is held. O(n)."""
        found: dict[tuple[int, str], Backlog] = {}
        for waiting in self._waiting.values():
            request = waiting.request
            backlog = found.setdefault((request.priority, request.tenant), Backlog())
            backlog.requests += 1
            backlog.tokens += waiting.tokens
        return found

    def holds(self, request_id: str) -> bool:
        """Whether a waiting request is not eligible yet."""
        return self._waiting[request_id].held

    @property
    def has_eligible(self) -> bool:
        """Whether anything may be admitted, held requests aside."""
        return bool(self._order)

    def push(
        self, request: Item, now: float, tokens: int, *, front: bool = False, held: bool = False
    ) -> None:
        """Queue `request`, which weighs `tokens`: behind its tenant's others, or before them (preempted).

        A `held` request counts in the totals but is not eligible until `unhold`.
        """
        self._waiting[request.id] = _Waiting(request, tokens, held)
        self.num_tokens += tokens
        backlog = self._backlogs.setdefault(request.tenant, Backlog())
        backlog.requests += 1
        backlog.tokens += tokens
        if not held:
            self._line_up(request, now, front=front)

    def unhold(self, request_id: str, now: float) -> None:
        """Make a held request eligible, ahead of its tenant's others: its parent has run."""
        waiting = self._waiting[request_id]
        if waiting.held:
            waiting.held = False
            self._line_up(waiting.request, now, front=True)

    def hold(self, request_id: str) -> None:
        """Make a waiting request not eligible: it stays in the totals."""
        waiting = self._waiting[request_id]
        if not waiting.held:
            waiting.held = True
            self._leave(waiting.request)

    def peek(self, now: float) -> tuple[Item, int] | None:
        """Return whose turn it is, and the class it competes in: its own, or a better class it was lifted to."""
        if not self._order:
            return None
        best = self._order[0]
        chosen = self._overdue(now) if len(self._order) > 1 else None
        line = self._classes[best if chosen is None else chosen]
        return next(iter(line.tenants[line.counters.next()].values())), best

    @property
    def best_class(self) -> int | None:
        """The most urgent class of which something may be admitted; None when nothing may."""
        return self._order[0] if self._order else None

    def unserved(self) -> Iterator[tuple[Item, float]]:
        """Yield the next request of each tenant in the most urgent class, and since when that tenant got nothing:
        the longest first."""
        if self._order:
            line = self._classes[self._order[0]]
            for tenant, since in line.tenants_unserved.items():
                yield next(iter(line.tenants[tenant].values())), since

    def by_service(self) -> list[Item]:
        """Return the next request of each tenant in the most urgent class, in the order of their turns. O(n log n)."""
        if not self._order:
            return []
        line = self._classes[self._order[0]]
        return [next(iter(line.tenants[tenant].values())) for tenant in line.counters.in_order()]

    def take(self, request: Item, now: float) -> None:
        """Remove `request` because it is admitted."""
        self.remove(request.id)
        line = self._class(request.priority)
        line.unserved_since = now
        if line.tenants:
            self._by_service.move_to_end(request.priority)
        if request.tenant in line.tenants:
            line.tenants_unserved[request.tenant] = now
            line.tenants_unserved.move_to_end(request.tenant)

    def remove(self, request_id: str) -> Item | None:
        """Remove a request wherever it stands; None when it does not wait."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return None
        self.num_tokens -= waiting.tokens
        self._forget(waiting.request.tenant, waiting.tokens)
        if not waiting.held:
            self._leave(waiting.request)
        return waiting.request

    def charge(self, request: Item, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Charge service to the request's tenant, in its own class; negative to take a charge back."""
        amount = self._input_weight * input_tokens + self._output_weight * output_tokens
        self._class(request.priority).counters.charge(request.tenant, amount)

    def service(self, request: Item) -> float:
        """The service that the request's tenant received in its class."""
        return self._class(request.priority).counters.counter(request.tenant)

    # -- inside ----------------------------------------------------------------------------------------

    def _line_up(self, request: Item, now: float, *, front: bool) -> None:
        line = self._class(request.priority)
        if not line.tenants:
            insort(self._order, request.priority)
            self._by_service[request.priority] = None
            line.unserved_since = now
        queue = line.tenants.get(request.tenant)
        if queue is None:
            queue = line.tenants[request.tenant] = OrderedDict()
            line.tenants_unserved[request.tenant] = now
            line.counters.activate(request.tenant)
        queue[request.id] = request
        if front:
            queue.move_to_end(request.id, last=False)

    def _leave(self, request: Item) -> None:
        line = self._classes[request.priority]
        queue = line.tenants[request.tenant]
        del queue[request.id]
        if not queue:
            del line.tenants[request.tenant]
            del line.tenants_unserved[request.tenant]
            line.counters.deactivate(request.tenant)
        if not line.tenants:
            self._order.remove(request.priority)
            del self._by_service[request.priority]

    def _forget(self, tenant: str, tokens: int) -> None:
        backlog = self._backlogs[tenant]
        backlog.requests -= 1
        backlog.tokens -= tokens
        if not backlog.requests:
            del self._backlogs[tenant]

    def _overdue(self, now: float) -> int | None:
        """Return the class that has gone unserved longest, when that is at least `ageing_seconds`: never one that gets
        only what is spare."""
        if self._ageing_seconds is None:
            return None
        best, oldest, since = self._order[0], None, 0.0
        for priority in self._by_service:
            if priority == best or priority >= SPARE_CLASS:
                continue
            its = self._classes[priority].unserved_since
            if oldest is not None and its > since:
                break
            oldest, since = (
                (priority if oldest is None else min(oldest, priority)),
                its,
            )  # the more urgent of equals
        return oldest if oldest is not None and now - since >= self._ageing_seconds else None

    def _class(self, priority: int) -> _Class[Item]:
        line = self._classes.get(priority)
        if line is None:
            if len(self._classes) - len(self._order) >= MAX_IDLE_CLASSES:
                for idle in [p for p, c in self._classes.items() if not c.tenants]:
                    del self._classes[idle]
            line = self._classes[priority] = _Class()
        return line

    def check_integrity(self) -> None:
        """Raise AssertionError unless totals, classes and tenants agree with the requests that wait."""
        lined = {r.id for c in self._classes.values() for q in c.tenants.values() for r in q.values()}
        eligible = {key for key, waiting in self._waiting.items() if not waiting.held}
        if lined != eligible or self.num_tokens != sum(w.tokens for w in self._waiting.values()):
            raise AssertionError("the queue's totals do not match the requests in it")
        backlogs: dict[str, Backlog] = {}
        for waiting in self._waiting.values():
            backlog = backlogs.setdefault(waiting.request.tenant, Backlog())
            backlog.requests, backlog.tokens = backlog.requests + 1, backlog.tokens + waiting.tokens
        if backlogs != self._backlogs:
            raise AssertionError("what tenants have waiting is miscounted")
        for line in self._classes.values():
            since = list(line.tenants_unserved.values())
            if line.tenants_unserved.keys() != line.tenants.keys() or since != sorted(since):
                raise AssertionError("the tenants of a class do not stand in the order of their waiting")
        if self._order != sorted(p for p, c in self._classes.items() if c.tenants):
            raise AssertionError("the queue's order of classes is wrong")


class Deadlines:
    """Which requests are past their deadline."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._count = 0
        self._sweep_at = 64

    def add(self, request: Request) -> None:
        """Watch `request`. Now and then those that finished long before their deadline are swept out."""
        if request.deadline is None:
            return
        self._count += 1
        heappush(self._heap, (request.deadline, self._count, request))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].state is not RequestState.FINISHED]
            heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 64

    def passed(self, now: float) -> Iterator[Request]:
        """Return the unfinished requests whose deadline is before `now`, each of them once."""
        while self._heap and (self._heap[0][0] < now or self._heap[0][2].state is RequestState.FINISHED):
            request = heappop(self._heap)[2]
            if request.state is not RequestState.FINISHED:
                yield request
