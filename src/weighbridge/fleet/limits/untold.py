"""What Redis may not have heard of requests: told when it answers, so that nothing counts twice or stays held. Pure.

A reply that does not come in time says nothing about what was done. A reservation tells it: one that is still there
was never settled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

#: Requests of which something is kept; of others a reservation ends by itself.
MOST_UNTOLD = 4096
#: Seconds after which the others may have given back what a gateway had reserved: from then on that a reservation is
#: not there does not say that it was settled.
GIVEN_BACK_AFTER = 5.0


@dataclass(frozen=True, slots=True)
class Untold:
    """The end of one request. `keys` and `slot`: where it is counted; `owed`: dollars of others, told with it."""

    tenant: str
    keys: Sequence[str]
    slot: int
    tokens: int = 0
    usd: float = 0.0
    owed: float = 0.0
    sent_at: float | None = None  # since when Redis may have heard it; None: it has not
    only_release: bool = False  # it was let in by the gateway's own limits, and is counted as such
    keeps_receipt: bool = False  # its answer is not handed over

    def adds(self, now: float) -> bool:
        """Whether it is to be counted too where Redis has no reservation of it."""
        if self.only_release:
            return False
        return self.sent_at is None or now >= self.sent_at + GIVEN_BACK_AFTER


class UntoldBook:
    """By the names of reservations, the oldest first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Untold] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: str, one: Untold) -> Untold | None:
        """Keep it, and return what there is no more room for. A release never takes the place of more."""
        if one.only_release and name in self._kept:
            return None
        self._kept[name] = one
        return self._kept.popitem(last=False)[1] if len(self._kept) > MOST_UNTOLD else None

    def first(self) -> tuple[str, Untold]:
        return next(iter(self._kept.items()))

    def wait_on(self, name: str, one: Untold, sent_at: float | None) -> None:
        """It could not be told now: the others come first. `sent_at`: since when Redis may have heard it all the
        same."""
        if self._kept.get(name) is one:
            if one.sent_at is None and sent_at is not None:
                self._kept[name] = replace(one, sent_at=sent_at)
            self._kept.move_to_end(name)

    def told(self, name: str, one: Untold) -> None:
        """Forget it, unless there is something newer to tell."""
        if self._kept.get(name) is one:
            del self._kept[name]
