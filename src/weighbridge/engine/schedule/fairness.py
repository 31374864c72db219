"""Virtual Token Counter: whose turn it is, by the service each tenant has received.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. Each tenant has a counter of the
service it got: `input_weight` per prompt token computed and `output_weight` per token produced. The tenant
with the smallest counter is next. A tenant that becomes active is lifted to the smallest active counter, so
that being idle earns no credit; a tenant that is always active therefore waits for at most a bounded amount
of other tenants' service, whatever they do.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

#: Idle tenants remembered before those that owe nothing are dropped; far more than ever wait at once.
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
        self._last_left = 0.0  # counter of the tenant that left last: the level an empty queue restarts from

    def activate(self, tenant: str) -> None:
        """Note that `tenant` has work again: lift its counter to the level of those that never stopped."""
        counter = max(self._counters.get(tenant, 0.0), self._level())
        self._activations += 1
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
        if len(self._counters) - len(self._active) > MAX_IDLE_TENANTS:
            self._drop_idle()

    def charge(self, tenant: str, amount: float) -> None:
        """Add `amount` of service; negative to take some back. Also for tenants with nothing waiting."""
        counter = self._counters[tenant] = self._counters.get(tenant, 0.0) + amount
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

    def _level(self) -> float:
        return self._counters[self.next()] if self._active else self._last_left

    def _drop_idle(self) -> None:
        """Forget idle tenants: first those that would be lifted anyway, then those with the smallest debt."""
        level = self._level()
        idle = sorted((c, tenant) for tenant, c in self._counters.items() if tenant not in self._active)
        for rank, (counter, tenant) in enumerate(idle):
            if counter <= level or rank < MAX_IDLE_TENANTS // 2:
                del self._counters[tenant]
