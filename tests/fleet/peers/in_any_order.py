"""Records that two rosters take in, in different orders."""

from __future__ import annotations

import random
from collections.abc import Sequence

from weighbridge.fleet.peers.registers import AnyRecord, Roster


def taken_in(
    records: Sequence[AnyRecord], rng: random.Random
) -> tuple[list[AnyRecord], Roster[AnyRecord], Roster[AnyRecord]]:
    """Return the records without those of one name and rank (a gateway makes no two changes at once), a roster that
    took them as they came, and one that took them in another order and twice."""
    records = list({(one.name, one.rank): one for one in records}.values())
    one: Roster[AnyRecord] = Roster()
    other: Roster[AnyRecord] = Roster()
    for record in records:
        one.take(record)
    shuffled = list(records)
    rng.shuffle(shuffled)
    for record in [*shuffled, *shuffled]:
        other.take(record)
    return records, one, other
