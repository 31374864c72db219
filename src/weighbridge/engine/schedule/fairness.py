"""Virtual Token Counter: whose turn it is, by the service each tenant has received; and who holds most seats.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. Each tenant has a counter of the
service it got: `input_weight` per prompt token computed and `output_weight` per token produced. The tenant
with the smallest counter is next. A tenant that becomes active is lifted to the smallest active counter, so
that being idle earns no credit; a tenant that is always active therefore waits for at most a bounded amount
of other tenants' service, whatever they do.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace

#: Tenants remembered that have nothing waiting; the one that has waited for nothing longest is forgotten first.
MAX_IDLE_TENANTS = 4096


class VirtualTokenCounters:
    """Counters of one priority class. Active means: has requests waiting."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._active: dict[str, int] = {}  # tenant -> number of its activation, which breaks ties
        self._activations = 0
        self._heap: list[
            tuple[float, int, str]
        ] = []  # one entry per activation; counters in it may lag behind
        self._idle: OrderedDict[str, None] = OrderedDict()  # have a counter and are not active
        self._last_left = 0.0  # counter of the tenant that left last: the level an empty queue restarts from

    def activate(self, tenant: str) -> None:
        """Note that `tenant` has work again: lift its counter to the level of those that never stopped."""
        counter = max(self._counters.get(tenant, 0.0), self._level())
        self._activations += 1
        self._idle.pop(tenant, None)
        self._counters[tenant] = counter
        self._active[tenant] = self._activations
        heappush(self._heap, (counter, self._activations, tenant))
        if len(self._heap) > 4 * len(self._active) + 64:
            self._heap = [(self._counters[t], number, t) for t, number in self._active.items()]
            heapify(self._heap)

    def deactivate(self, tenant: str) -> None:
        """Note that `tenant` has nothing waiting any more; its counter stays, so that leaving wipes out no debt."""
        del self._active[tenant]
        self._last_left = self._counters[tenant]
        self._remember(tenant)

    def charge(self, tenant: str, amount: float) -> None:
        """Add `amount` of service; negative to take some back. Also for tenants with nothing waiting."""
        before = self._counters.get(tenant)
        counter = self._counters[tenant] = amount if before is None else before + amount
        if before is None:
            self._remember(tenant)
        if amount < 0.0 and tenant in self._active:
            heappush(self._heap, (counter, self._active[tenant], tenant))

    def counter(self, tenant: str) -> float:
        return self._counters.get(tenant, 0.0)

    def next(self) -> str:
        """The active tenant that got least, of equals the one active longest. IndexError when none is active.

        An outdated heap entry is too small, so that it comes up early and is put back with the counter of
        today; or, after a refund, it is too large and has a fresh one before it.
        """
        while True:
            counter, activation, tenant = self._heap[0]
            if self._active.get(tenant) != activation:
                heappop(self._heap)
            elif counter != self._counters[tenant]:
                heapreplace(self._heap, (self._counters[tenant], activation, tenant))
            else:
                return tenant

    def in_order(self) -> list[str]:
        """Return the active tenants in the order of `next`, if each got enough to be the last."""
        return sorted(self._active, key=lambda tenant: (self._counters[tenant], self._active[tenant]))

    def _level(self) -> float:
        return self._counters[self.next()] if self._active else self._last_left

    def _remember(self, tenant: str) -> None:
        """Keep the counter of a tenant that is idle, and not those of ever more of them."""
        self._idle[tenant] = None
        if len(self._idle) > MAX_IDLE_TENANTS:
            del self._counters[self._idle.popitem(last=False)[0]]


class Seats:
    """How many seats each tenant holds, and how many the one that holds most. All operations are O(1)."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._holders: dict[int, dict[str, None]] = {}  # tenants by the number of their seats
        self.most = 0  # seats of one tenant

    def of(self, tenant: str) -> int:
        """How many seats `tenant` holds."""
        return self._held.get(tenant, 0)

    @property
    def fullest(self) -> str | None:
        """The tenant that holds most, of equals the one that has done so longest; None when nobody sits."""
        return next(iter(self._holders[self.most])) if self.most else None

    def take(self, tenant: str) -> None:
        self._move(tenant, self._held.get(tenant, 0), 1)

    def give_back(self, tenant: str) -> None:
        self._move(tenant, self._held[tenant], -1)

    def _move(self, tenant: str, before: int, change: int) -> None:
        after = before + change
        if before:
            holders = self._holders[before]
            del holders[tenant]
            if not holders:
                del self._holders[before]
        if after:
            self._held[tenant] = after
            self._holders.setdefault(after, {})[tenant] = None
        else:
            del self._held[tenant]
        if after > self.most or self.most not in self._holders:
            self.most = after

    def check_integrity(self, seated: dict[str, int]) -> None:
        """Raise AssertionError unless the tenants hold what `seated` says."""
        if self._held != seated or self.most != max(seated.values(), default=0):
            raise AssertionError("the seats of tenants are miscounted")
        if {t: n for n, holders in self._holders.items() for t in holders} != seated:
            raise AssertionError("a tenant stands with those who hold another number of seats")
