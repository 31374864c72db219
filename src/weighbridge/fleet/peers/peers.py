"""This gateway among its peers: it looks at the board once a second, takes in what they changed and tells what it did.

Redis away: everything goes on with what was known. What is changed meanwhile is told when it is back, and where two
gateways changed the same, the record with the higher version holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from weighbridge.errors import Refused
from weighbridge.fleet.config.spec import PeersSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.peers.board import GONE_AFTER, PAGE, Board, BoardState, Outdated, TooMany
from weighbridge.fleet.peers.learning import SharedLearning
from weighbridge.fleet.peers.membership import SharedMembers
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.fleet.peers.registers import (
    CLOCKS_APART,
    LONGEST_WHO,
    MOST_RECORDS,
    RefusedRecord,
    Roster,
    SharedRecord,
)
from weighbridge.fleet.peers.signs import SignsOfLife
from weighbridge.fleet.peers.tenant_records import MOST_TENANT_RECORDS, TenantRecord
from weighbridge.fleet.peers.tenants import SharedTenants, too_many

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two looks at the board, and where one look did not bring all.
INTERVAL, AT_ONCE_AGAIN = 1.0, 0.05
#: Seconds that Redis has for an answer to a look, which nobody waits for.
PATIENCE = 2.0
#: Records that are written in one turn where Redis lacks them, and refused ones that are logged one by one.
AT_ONCE, MOST_COMPLAINTS = 256, 16

#: Hears of a change that was made elsewhere: its record and what was done here.
Heard = Callable[[MemberRecord, str], Awaitable[None]]


class Contested(Refused):
    """Somebody else has changed the same meanwhile."""

    status = 409
    kind = "invalid_request_error"
    code = "changed_meanwhile"


class Peers:
    """Started and stopped with its gateway; every method is for the event loop that serves."""

    def __init__(self, gateway: Gateway, spec: PeersSpec, key: bytes, heard: Heard | None = None) -> None:
        """`key`: the digest of the operator's key. Raises BadInput where the extra `redis` is missing."""
        self.me = own_name(spec.name)
        self.refused = 0  # records in Redis that no gateway of ours wrote
        self.away_since: float | None = None  # on the gateway's clock
        self.gateways: dict[str, float] = {}  # seconds since each was heard of, at the last look
        patience = max(spec.timeout, PATIENCE)
        self.board = Board(spec.redis, spec.prefix, self.me, key, patience, "shared")
        self.members = SharedMembers(gateway, Roster()) if spec.members else None
        self.tenants = SharedTenants(self.board) if spec.tenants else None
        self.learning = SharedLearning(gateway, key, self.me) if spec.learned else None
        self._gateway, self._heard = gateway, heard
        self._count = ""
        self._signs = SignsOfLife()
        self._complaints: dict[str, str] = {}
        self._more = False  # whether the last look did not bring all
        self._looking: asyncio.Task[None] | None = None
        if gateway.shared_limits is not None:
            gateway.shared_limits.gateway = self.me
            gateway.shared_limits.gone = self.gone

    async def start(self, seeds: list[MemberRecord]) -> None:
        """Look once, so that what the others know holds before the first request, and go on looking.

        `seeds`: what this gateway had written down itself before; what Redis knows of the same replicas holds.
        """
        if self.members is not None:
            for record in seeds:
                self.members.roster.take(record)
                self.members.note_own(record.name, record.entry)
        await self.look()
        for _ in range(2 * MOST_TENANT_RECORDS // PAGE):
            if not self._more:
                break
            await self.look()
        self._looking = asyncio.create_task(self._look_on())

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self.members is not None:
            await self.members.close()
        try:
            if self.away_since is None and not self._gateway.open_journeys:
                await self.board.leave()
        except Exception as error:
            self._failed(error)
        await self.board.close()

    def gone(self) -> list[str]:
        """Gateways that gave no sign of life for long: nothing that they had open goes on."""
        if self.away_since is not None:
            return []
        return [name for name, age in self.gateways.items() if age > GONE_AFTER and name != self.me]

    def is_gone(self, name: str) -> bool:
        """Whether a gateway has ended, or gives no sign of life."""
        if self.away_since is not None or name == self.me:
            return False
        return self.gateways.get(name, math.inf) > GONE_AFTER

    @property
    def alive(self) -> int:
        """Gateways that were there at the last look, this one included."""
        return sum([age <= GONE_AFTER for age in self.gateways.values()])

    def told(self) -> dict[str, Any]:
        """What is shared, and whether it is now: for `/health` and `/v1/load`."""
        away = self.away_since
        return {
            "redis": "up" if away is None else "away",
            "away_seconds": 0.0 if away is None else round(self._gateway.clock() - away, 1),
            "gateway": self.me,
            "gateways": self.alive,
            "records": 0 if self.members is None else len(self.members.roster),
            "tenant_records": 0 if self.tenants is None else len(self.tenants.roster),
            "refused": self.refused + (0 if self.learning is None else self.learning.refused),
        }

    # -- what an operator does here --------------------------------------------------------------------

    async def change(self, rest: Rest, name: str, model: str, by: str, entry: dict[str, Any] | None = None,
                     *, is_secret: bool = False, is_a_files: bool = False) -> None:  # fmt: skip
        """Tell the others of a change before it is made here. Raises Contested where somebody was quicker.

        `entry`: of a replica that is added; None: what was known of it stays so, unless the file names it
        (`is_a_files`).
        """
        assert self.members is not None
        roster, who = self.members.roster, self.who(by)
        known = roster.get(name)
        if entry is None and not is_secret and not is_a_files and known is not None:
            entry, is_secret = known.entry, known.is_secret
        version = roster.version(name)
        record = MemberRecord(
            name=name, model=model, rest=rest, version=version + 1, at=time.time(), by=who, entry=entry,
            is_secret=is_secret,
        )  # fmt: skip
        await self._tell(record, version)
        roster.take(record)
        self.members.note_own(name, None if rest is Rest.REMOVED else entry)

    async def _tell(self, record: MemberRecord, version: int) -> None:
        try:
            await self._put(record, version)
        except Outdated as stands:
            other = stands.record
            await self._take(other)
            raise contested(f"replica {record.name!r} was {other.in_words()}", other) from None
        except TooMany:
            raise Contested(f"there are {MOST_RECORDS} shared replicas already; remove some") from None

    def who(self, by: str) -> str:
        """Who changed something here, as the others hear of it."""
        return f"{by}, gateway {self.me}"[:LONGEST_WHO]

    async def tell(self, record: TenantRecord, follows: int | None) -> bool:
        """Tell the others of a tenant's key or limits; False: Redis is away, and it is done when it is back.

        Raises Outdated where another gateway was quicker, and TooManyTold.
        """
        try:
            return await self._put(record, follows)
        except TooMany:
            raise too_many() from None

    async def _put(self, record: MemberRecord | TenantRecord, follows: int | None) -> bool:
        """Write a record onto the board; False: Redis is away. Raises Outdated, TooMany and Contested."""
        if self.away_since is not None:
            return False
        try:
            await self.board.put(record, follows)
        except (Outdated, TooMany):
            raise
        except RefusedRecord as error:
            raise Contested(str(error)) from None
        except Exception as error:
            self._failed(error)
            return False
        return True

    # -- the board -------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            pause = AT_ONCE_AGAIN if self._more else INTERVAL
            await asyncio.sleep(pause * (0.9 + 0.2 * random.random()))  # not all in step
            await self.look()

    async def look(self) -> None:
        """Look at the board once. Never fails."""
        try:
            learning = self.learning
            wanted, own = (learning.read_to, learning.news()) if learning is not None else ("", b"")
            tenants = self.tenants
            place = ("", 0) if tenants is None else tenants.place
            seen = await self.board.look(self._count, wanted, own, place)
            self.gateways = self._signs.read(seen.gateways, seen.tenants.at, self._gateway.clock())
            self._complain(seen)
            if tenants is not None:  # first of all, so that no key that was revoked waits for anything
                await tenants.take_in(seen.tenants)
                self._more = seen.tenants.more
            if seen.members is not None and self.members is not None:
                await self._take_in(seen)
            self._count = seen.count
            if learning is not None:
                await learning.share(self.board, seen)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failed(error)
        else:
            self._works()
        if self.members is not None:
            self.members.hold()

    async def _take_in(self, seen: BoardState) -> None:
        """Take in what others changed, and write what Redis does not know."""
        assert seen.members is not None
        assert self.members is not None
        roster = self.members.roster
        # One clock for all: a gateway's that is far ahead would have removals forgotten too soon.
        now = seen.tenants.at
        for record in seen.members.values():
            # Of what was removed long ago only somebody who was away for as long has still to hear.
            if not record.is_past(now) or roster.get(record.name) is not None:
                await self._take(record)
        roster.forget_past(now)
        if "*" in seen.refused:
            return
        past = [one for one in seen.members.values() if one.is_past(now - CLOCKS_APART)][:AT_ONCE]
        if past:
            await self.board.forget(past)
        for record in self.members.own_removed():
            await self._share(self._as_a_files(record))
        for record in roster.newer_than(seen.members)[:AT_ONCE]:
            await self._share(record)

    def _as_a_files(self, record: MemberRecord) -> MemberRecord:
        """The removal of a replica that somebody had added, and that this gateway's file names."""
        who = f"the configuration, gateway {self.me}"[:LONGEST_WHO]
        version, now = record.version + 1, max(time.time(), record.at)
        return replace(record, version=version, at=now, by=who, entry=None, is_secret=False)

    async def _share(self, record: MemberRecord) -> None:
        """Write a record into Redis that is newer than what lies there; take over what turns out to be newer still."""
        try:
            await self.board.put(record, None)
        except Outdated as stands:
            if stands.record.rank != record.rank:
                await self._take(stands.record)
        except (TooMany, RefusedRecord) as error:
            log.warning("the record of %s could not be shared: %s", record.name, error)
        else:
            assert self.members is not None
            self.members.roster.take(record)

    async def _take(self, record: MemberRecord) -> None:
        assert self.members is not None
        known = self.members.roster.get(record.name)
        done = self.members.take(record)
        if done is None:
            return
        if known is not None and known.version >= record.version and known.by != record.by:
            log.warning(
                "replica %s: what %s did holds, and not what %s did", record.name, record.by, known.by
            )
        log.info("replica %s was %s by %s", record.name, done, record.by)
        if self._heard is not None:
            await self._heard(record, done)

    def _complain(self, seen: BoardState) -> None:
        """Count and log what lies in Redis and is none of ours, each once."""
        found = {**seen.refused, **seen.tenants.refused}
        new = {name: why for name, why in found.items() if self._complaints.get(name) != why}
        self.refused += len(new)
        for why in list(new.values())[:MOST_COMPLAINTS]:
            log.warning("Redis: %s; it is left alone", why)
        if len(new) > MOST_COMPLAINTS:
            log.warning("Redis: %d more records are none of ours", len(new) - MOST_COMPLAINTS)
        if seen.members is not None or seen.tenants.whole or len(self._complaints) > MOST_RECORDS:
            self._complaints = found
        else:
            self._complaints.update(found)

    def _failed(self, error: Exception) -> None:
        self._count = ""  # what was missed is read when it is back
        self._more = False
        if self.tenants is not None:
            self.tenants.read_again()
        if self.away_since is None:
            self.away_since = self._gateway.clock()
            why = (str(error) or type(error).__name__)[:200]
            log.warning("Redis is away (%s): this gateway goes on with what it knows", why)

    def _works(self) -> None:
        if self.away_since is not None:
            self.away_since = None
            log.warning("Redis is back: what is changed is shared again")


def contested(what: str, record: SharedRecord) -> Contested:
    """The refusal of a change, since `what` was done elsewhere."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.at))
    return Contested(f"{what} at {when} by {record.by}; look again")


def own_name(name: str | None) -> str:
    """A gateway's name among others: no two processes have the same, also where they are told the same."""
    base = name or re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40] or "gateway"
    return f"{base}-{secrets.token_hex(4)}"
