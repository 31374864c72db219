"""Hard caps that no prompt can talk its way around: rate and share of cloud requests, per tenant. Pure.

A learned score can be driven up by a crafted prefix (Shafran et al. 2025, arXiv 2501.01818). What that can
cost is bounded here, whatever the score says.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

#: Tenants remembered; names are the clients' to choose, memory is ours.
MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class CapSettings:
    """None: no cap. The share is of a tenant's requests within `window` seconds, once there are `share_after`."""

    cloud_per_minute: float | None = None
    cloud_share: float | None = None
    window: float = 600.0
    share_after: int = 20


@dataclass(slots=True)
class _Tenant:
    seen: deque[float] = field(default_factory=deque)
    sent: deque[float] = field(default_factory=deque)

    def forget(self, before: float) -> None:
        for times in (self.seen, self.sent):
            while times and times[0] < before:
                times.popleft()


class Caps:
    """How much of each tenant's traffic has gone to the cloud lately. Times are seconds of any one clock."""

    def __init__(self, settings: CapSettings = CapSettings()) -> None:
        self.settings = settings
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()

    def arrived(self, tenant: str, now: float) -> None:
        """Count a request, wherever it will go."""
        self._of(tenant, now).seen.append(now)

    def refusal(self, tenant: str, now: float) -> str:
        """Why one more request of the tenant may not go to the cloud now; empty when it may."""
        one, settings = self._of(tenant, now), self.settings
        if settings.cloud_per_minute is not None:
            minute = sum(1 for at in one.sent if at > now - 60.0)
            if minute + 1 > settings.cloud_per_minute:
                return f"tenant {tenant} sent {minute} requests to the cloud within a minute, its cap"
        share, known = settings.cloud_share, len(one.seen) >= settings.share_after
        if share is not None and known and len(one.sent) + 1 > share * len(one.seen):
            return f"tenant {tenant} has had its cloud share of {share:.0%}"
        return ""

    def sent(self, tenant: str, now: float) -> None:
        """Count a request that goes to the cloud."""
        self._of(tenant, now).sent.append(now)

    def _of(self, tenant: str, now: float) -> _Tenant:
        one = self._tenants.pop(tenant, None) or _Tenant()
        self._tenants[tenant] = one
        while len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)
        one.forget(now - max(self.settings.window, 60.0))
        return one
