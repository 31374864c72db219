"""Keys and limits of tenants that were changed at one gateway are so at every other: what of them this one knows, what
Redis lacks of it, and what nobody need remember any more.

What a change does to a gateway is for whoever hears of it; in what order they come does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from weighbridge.errors import Refused
from weighbridge.fleet.peers.board import Board, Outdated, TenantsRead, TooMany
from weighbridge.fleet.peers.registers import CLOCKS_APART, RefusedRecord, Roster
from weighbridge.fleet.peers.tenant_records import (
    MOST_TENANT_RECORDS,
    ROOM_FOR_REVOKED,
    KeyRecord,
    TenantRecord,
)

log = logging.getLogger("weighbridge.fleet")

#: Records that are written in one turn where Redis lacks them.
AT_ONCE = 64
#: Seconds between two looks for what nobody need remember.
TIDY_EVERY = 600.0

#: Hears of changes that were made elsewhere, all that came with one look.
HeardOfTenants = Callable[[Sequence[TenantRecord]], Awaitable[None]]


class TooManyTold(Refused):
    """Gateways have told each other of as many keys and limits as they may."""

    status = 409
    kind = "invalid_request_error"
    code = "too_many_changes"


class SharedTenants:
    """The records that hold, and how far Redis has them."""

    def __init__(self, board: Board) -> None:
        # What several gateways did while they were apart may be more than there may be.
        self.roster: Roster[TenantRecord] = Roster(2 * MOST_TENANT_RECORDS)
        self.place = "", 0  # up to where the board was read
        self.refused: dict[str, str] = {}
        self._board = board
        self._hear: HeardOfTenants | None = None
        self._there: dict[str, tuple[int, float, str]] = {}  # ranks of what lies in Redis
        self._all = False  # whether what is being read began with the beginning
        self._lacking: dict[str, None] = {}  # names of what Redis has yet to be told
        self._leaving: dict[str, TenantRecord] = {}  # what is forgotten here, and not yet in Redis
        self._tidied = 0.0

    def begin(self, seeds: Sequence[TenantRecord], hear: HeardOfTenants) -> None:
        """Begin with what this gateway had written down itself. `hear` is told of all that comes from elsewhere."""
        self._hear = hear
        for record in seeds:
            self.roster.take(record)

    def read_again(self) -> None:
        """Read all of it with the next look."""
        self.place = "", 0

    def check_room(self) -> None:
        """Raises TooManyTold where there is no room for one more name."""
        if len(self.roster) >= MOST_TENANT_RECORDS - ROOM_FOR_REVOKED:
            raise too_many()

    async def take_in(self, read: TenantsRead) -> None:
        """Take in what others changed, and write what Redis does not know. Raises what the board raises."""
        now = (
            read.at
        )  # by one clock for all: one that is far ahead would have revoked keys forgotten too soon
        if read.whole:
            self._there.clear()
            self._all = True
        fresh = []
        for record in read.records:
            self._there[record.name] = record.rank
            if record.is_past(now) and self.roster.get(record.name) is None:
                self._leaving[record.name] = record
            elif self._is_news(record):
                fresh.append(record)
        if fresh and self._hear is not None:
            await self._hear(fresh)
        self.place = read.place
        if read.more:
            return
        names = self.roster.all() if self._all else [one.name for one in read.records]
        self._lacking.update(dict.fromkeys(name for name in names if self._is_lacking(name)))
        self._all = False
        await self._write_lacking()
        await self._tidy(now)

    def _is_news(self, record: TenantRecord) -> bool:
        known = self.roster.get(record.name)
        if not self.roster.take(record):
            return False
        if known is not None and known.version == record.version and not isinstance(record, KeyRecord):
            log.warning(
                "limits of tenant %s: what %s did holds, and not what %s did",
                record.tenant,
                record.by,
                known.by,
            )
        return True

    def _is_lacking(self, name: str) -> bool:
        """Whether Redis has nothing under a name, or something older than what is known here."""
        known, there = self.roster.get(name), self._there.get(name)
        return known is not None and (there is None or there < known.rank)

    async def _write_lacking(self) -> None:
        for name in list(self._lacking)[:AT_ONCE]:
            record = self.roster.get(name)
            if record is not None and self._is_lacking(name):
                try:
                    await self._board.put(record, None)
                except Outdated:
                    pass  # it comes with the next look
                except (TooMany, RefusedRecord) as error:
                    why = str(error) or str(too_many())
                    log.error("what %s did (%s) could not be told to the others: %s", record.by, name, why)
            del self._lacking[name]

    async def _tidy(self, now: float) -> None:
        """Forget what nobody need know; in Redis later than here, so that nobody who looks later writes it again."""
        if now >= self._tidied + TIDY_EVERY or now < self._tidied:
            self._tidied = now
            past = [one for one in self.roster.all().values() if one.is_past(now)]
            self._leaving.update((one.name, one) for one in past)
            self.roster.forget_past(now)
        gone = [one for one in self._leaving.values() if one.is_past(now - CLOCKS_APART)][:AT_ONCE]
        if gone:
            await self._board.forget(gone)
        for one in gone:
            self._leaving.pop(one.name, None)
            self._there.pop(one.name, None)


def too_many() -> TooManyTold:
    most = MOST_TENANT_RECORDS - ROOM_FOR_REVOKED
    return TooManyTold(
        f"gateways have told each other of {most} keys and limits of tenants, and may not of more; give keys an end "
        "(`expires`), after which they are forgotten, or write limits into weighbridge.yaml"
    )
