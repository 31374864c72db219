"""A response as it is kept, and what of those kept may be in memory at one time. Pure: time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.wire.protocols.response.items import Item

#: About what a record takes in memory beside its bytes, and each name of an item, and each event.
RECORD_BYTES, NAME_BYTES, EVENT_BYTES = 1024, 480, 64

_decode = msgspec.json.decode


@dataclass(slots=True)
class KeptResponse:
    """A response, and what it answered. `response` and `input` are JSON; `events`: as they were sent, where they were
    made in the background."""

    id: str
    tenant: str
    made_at: float  # Unix seconds
    response: bytes
    input: bytes
    previous: str | None = None
    labels: frozenset[str] = frozenset()  # with those of the turns before
    only_edge: bool = False
    private: bool = False  # must not be written down
    events: Sequence[bytes] | None = None
    names: tuple[str, ...] = field(default=())  # of its items

    @property
    def items(self) -> list[Item]:
        """What this turn adds to a conversation: its own input, and the answer."""
        return [*_decode(self.input), *self.shown["output"]]

    @property
    def shown(self) -> dict[str, Any]:
        """The response as a client sees it."""
        shown: dict[str, Any] = _decode(self.response)
        return shown

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory."""
        events = sum([len(event) + EVENT_BYTES for event in self.events or ()])
        names = sum([len(name) + NAME_BYTES for name in self.names])
        return RECORD_BYTES + len(self.response) + len(self.input) + events + names


class ResponseMemory:
    """Responses for some time and within bounds of bytes, per tenant and in all; the oldest make room for new ones."""

    def __init__(self, *, tenant_bytes: int, all_bytes: int, kept_s: float) -> None:
        self._tenant_bytes = tenant_bytes
        self._all_bytes = all_bytes
        self._kept_s = kept_s
        self._records: dict[str, OrderedDict[str, KeptResponse]] = {}  # by tenant, the oldest first
        self._until: OrderedDict[str, tuple[float, str]] = OrderedDict()  # id: when it goes, and whose it is
        self._named: dict[
            str, dict[str, str]
        ] = {}  # item: the responses that have it, and whose they are; the newest last
        self._held: dict[str, int] = {}  # bytes by tenant, those of answers under way among them
        self.bytes = 0

    def add(self, record: KeptResponse, now: float) -> bool:
        """Keep a response; False for one that is larger than a tenant may have, or than what has become free."""
        self._set_right(now)
        self.remove(record.id)
        if not self.hold(record.tenant, record.size):
            return False
        self._records.setdefault(record.tenant, OrderedDict())[record.id] = record
        self._until[record.id] = (now + self._kept_s, record.tenant)
        for one in record.names:
            self._named.setdefault(one, {})[record.id] = record.tenant
        return True

    def get(self, name: str, now: float) -> KeptResponse | None:
        self.expire(now)
        found = self._until.get(name)
        return self._records[found[1]][name] if found is not None else None

    def with_item(self, name: str, owner: str | None, now: float) -> KeptResponse | None:
        """The newest response that has an item of this name. Clients choose names, several the same; `owner`: whose
        response it must be, None: anybody's."""
        self.expire(now)
        whose = reversed(self._named.get(name, {}).items())
        found = next((one for one, tenant in whose if owner in (None, tenant)), None)
        return self.get(found, now) if found is not None else None

    def touch(self, name: str, now: float) -> None:
        """Begin its time anew: a conversation goes on from it."""
        self._set_right(now)
        if name in self._until:
            tenant = self._until[name][1]
            self._until[name] = (now + self._kept_s, tenant)
            self._until.move_to_end(name)
            self._records[tenant].move_to_end(name)

    def remove(self, name: str) -> KeptResponse | None:
        until = self._until.pop(name, None)
        if until is None:
            return None
        tenant = until[1]
        record = self._records[tenant].pop(name)
        if not self._records[tenant]:
            del self._records[tenant]
        for one in set(record.names):
            del self._named[one][name]
            if not self._named[one]:
                del self._named[one]
        self.let_go(tenant, record.size)
        return record

    def expire(self, now: float) -> None:
        """Forget what was kept long enough."""
        self._set_right(now)
        while self._until and (first := next(iter(self._until.items())))[1][0] <= now:
            self.remove(first[0])

    def _set_right(self, now: float) -> None:
        """Where the clock was set back, keep nothing for longer than from now on, in the order of their ends."""
        latest = now + self._kept_s
        if self._until and self._until[next(reversed(self._until))][0] > latest:
            self._until = OrderedDict(
                (name, (min(until, latest), tenant)) for name, (until, tenant) in self._until.items()
            )

    def hold(self, tenant: str, size: int) -> bool:
        """Take bytes for a tenant, for which its oldest responses go, and then those of whoever has most; False where
        that is not enough."""
        while self._held.get(tenant, 0) + size > self._tenant_bytes:
            if tenant not in self._records:
                return False
            self.remove(next(iter(self._records[tenant])))
        while self.bytes + size > self._all_bytes:
            if not self._records:
                return False
            most = max(self._records, key=lambda one: self._held[one])
            self.remove(next(iter(self._records[most])))
        self._held[tenant] = self._held.get(tenant, 0) + size
        self.bytes += size
        return True

    def let_go(self, tenant: str, size: int) -> None:
        """Give back what `hold` took."""
        self.bytes -= size
        self._held[tenant] -= size
        if not self._held[tenant]:
            del self._held[tenant]

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)
