"""What gateways tell each other of anything that somebody changes: a record for each name, of which the one with the
highest version holds. Pure.

A record is a register that the last writer wins: versions count up with every change of a name, so whoever has seen
more of its history wins, and of two that have seen the same the later does, by the clocks of those who made them. So
gateways that were apart, or a Redis that has lost everything, come to the same as soon as all records are in one place
again, in whatever order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from weighbridge.errors import BadInput
from weighbridge.fleet.peers.seal import DIGITS, Seal

#: Bytes of one record, and how many there may be of one sort.
LARGEST_RECORD, MOST_RECORDS = 32 << 10, 10_000
#: Characters of who changed something.
LONGEST_WHO = 200
#: Seconds for which it is remembered, here and in Redis, that what somebody had made at run time is no more: far
#: longer than any gateway takes to start again or to read its file again, and longer than one may be cut off.
REMOVED_KEPT = 7 * 86400.0
#: Seconds by which Redis forgets later than gateways do: as far as their clocks may differ, so that none writes again
#: what was just forgotten.
CLOCKS_APART = 3600.0
#: Versions beyond this are nobody's: each change adds one.
MOST_VERSIONS = 1 << 50

#: A record as it lies in Redis: version, time, seal, and the record as JSON.
_WRITTEN = re.compile(rb"(\d{1,16}) (\d{1,11}\.\d{6}) ([0-9a-f]{%d}) (.*)" % DIGITS, re.DOTALL)


def rank_of(version: int, at: float, by: str) -> tuple[int, float, str]:
    """The place of a change among all of one name; times count as far as they are written."""
    return version, round(at, 6), by


class SharedRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds of something with a name. `at`: epoch seconds; `by`: who changed it, and at which gateway."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    version: Annotated[int, msgspec.Meta(ge=1, le=MOST_VERSIONS)]
    at: Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
    by: Annotated[str, msgspec.Meta(max_length=LONGEST_WHO)]

    @property
    def rank(self) -> tuple[int, float, str]:
        """What decides between two records of one name."""
        return rank_of(self.version, self.at, self.by)

    def is_past(self, now: float) -> bool:
        """Whether nobody need know it any more. `now`: epoch seconds."""
        return False

    def check(self) -> None:
        """Raises ValueError where its parts do not go together."""


AnyRecord = TypeVar("AnyRecord", bound=SharedRecord)


class RefusedRecord(BadInput):
    """What lies in Redis under a name is no record of ours."""


def written(record: SharedRecord, seal: Seal) -> bytes:
    """A record as it is kept in Redis. Raises BadInput for one that is too large."""
    text = msgspec.json.encode(record)
    data = b"%d %.6f %b %b" % (record.version, record.at, seal.of(_sealed(record, text)), text)
    if len(data) > LARGEST_RECORD:
        raise BadInput(
            f"the entry of {record.name!r} is larger than {LARGEST_RECORD >> 10} KiB; make it smaller"
        )
    return data


class Reader(Generic[AnyRecord]):
    """Reads the records of one sort."""

    def __init__(self, kind: Any, seal: Seal) -> None:
        """`kind`: the record's type, or a union of tagged ones."""
        self._decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(kind)
        self._seal = seal

    def read(self, name: str, data: bytes) -> AnyRecord:
        """A record as it was kept under a name. Raises RefusedRecord for anything that no gateway of ours wrote."""
        found = _WRITTEN.fullmatch(data) if len(data) <= LARGEST_RECORD else None
        if found is None:
            raise RefusedRecord(f"what is kept of {name!r} is no record")
        version, at, mark, text = found.groups()
        try:
            record = self._decoder.decode(text)
            record.check()
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise RefusedRecord(f"the record of {name!r} is malformed: {str(error)[:200]}") from None
        if not self._seal.fits(mark, _sealed(record, text)):
            raise RefusedRecord(f"the record of {name!r} is not sealed with this gateway's admin_key")
        if record.name != name or record.version != int(version) or b"%.6f" % record.at != at:
            raise RefusedRecord(f"the record of {name!r} is another one's")
        return record


def _sealed(record: SharedRecord, text: bytes) -> bytes:
    return b"%d %.6f %b" % (record.version, record.at, text)


class Roster(Generic[AnyRecord]):
    """The newest record of each name that a gateway knows of."""

    def __init__(self, most: int = MOST_RECORDS) -> None:
        self._records: dict[str, AnyRecord] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: str) -> AnyRecord | None:
        return self._records.get(name)

    def all(self) -> Mapping[str, AnyRecord]:
        return self._records

    def version(self, name: str) -> int:
        """The version of what is known of a name; 0: nothing."""
        known = self._records.get(name)
        return 0 if known is None else known.version

    def take(self, record: AnyRecord) -> bool:
        """Take a record in where it is newer than what is known; False where it is not."""
        known = self._records.get(record.name)
        if known is not None and record.rank <= known.rank:
            return False
        if known is None and len(self._records) >= self._most:
            return False
        self._records[record.name] = record
        return True

    def newer_than(self, others: Mapping[str, AnyRecord]) -> list[AnyRecord]:
        """Records that are newer than those of `others`, or that these lack."""
        found = []
        for name, record in self._records.items():
            other = others.get(name)
            if other is None or record.rank > other.rank:
                found.append(record)
        return found

    def forget_past(self, now: float) -> list[str]:
        """Forget what nobody need know any more; return the names."""
        past = [name for name, one in self._records.items() if one.is_past(now)]
        for name in past:
            del self._records[name]
        return past
