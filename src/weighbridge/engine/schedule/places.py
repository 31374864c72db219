"""Places in the line that are kept for requests of one call, which come one after another: all of them, or none."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.engine.request import Places


@dataclass(slots=True)
class Backlog:
    """What waits, or is to: of one tenant, or of all."""

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: Backlog) -> Backlog:
        return Backlog(self.requests + other.requests, self.tokens + other.tokens)


NOTHING = Backlog()


class KeptPlaces:
    """All places that are kept, in total and by tenant. They count as if somebody waited there."""

    def __init__(self) -> None:
        self.total = Backlog()
        self.by_tenant: dict[str, Backlog] = {}

    def of(self, tenant: str) -> Backlog:
        return self.by_tenant.get(tenant, NOTHING)

    def keep(self, tenant: str, requests: int, tokens: int) -> Places:
        """Keep places, for which there is room."""
        self._count(tenant, requests, tokens)
        return Places(tenant, requests, tokens)

    def give_back(self, places: Places, requests: int | None = None) -> None:
        """Give places back, because their requests are in the line or do not come; None: all that are left."""
        count = places.requests if requests is None else min(requests, places.requests)
        if not count:
            return
        tokens = places.tokens * count // places.requests
        places.requests -= count
        places.tokens -= tokens
        self._count(places.tenant, -count, -tokens)

    def _count(self, tenant: str, requests: int, tokens: int) -> None:
        change = Backlog(requests, tokens)
        self.total = self.total + change
        left = self.of(tenant) + change
        if left.requests:
            self.by_tenant[tenant] = left
        else:
            self.by_tenant.pop(tenant, None)
