"""Replicas that were added, drained or removed at one gateway are so at every other: records made true here.

The configuration's own replicas stay the configuration's: a record may have them rest or gone, and never says what
they are. What is started by a gateway itself (`process:`, `engine:`, `ray:`) is its own, and told to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.replica import replica_from_json
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.fleet.peers.registers import Roster
from weighbridge.fleet.pool import Pool

log = logging.getLogger("weighbridge.fleet")

#: Seconds that what runs at a replica has to end when it was removed at another gateway.
LAST_WORK = 30.0


def is_shared(spec: ReplicaSpec) -> bool:
    """Whether a replica is the same one for every gateway."""
    return spec.kind == "url"


class SharedMembers:
    """The records that hold, and the replicas of one gateway held to them."""

    def __init__(self, gateway: Gateway, roster: Roster[MemberRecord]) -> None:
        self.roster = roster
        self._gateway = gateway
        self._entries: dict[str, dict[str, Any]] = {}  # of replicas that are here by a record
        self._failed: dict[str, tuple[int, float, str]] = {}  # records that could not be made true
        self._changing: Counter[str] = Counter()
        self._passed_over: set[str] = set()  # whose records came meanwhile
        self._removing: dict[str, asyncio.Task[bool]] = {}

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Leave a replica alone, because somebody changes it here and has told the others already."""
        self._changing[name] += 1
        try:
            yield
        finally:
            self._changing[name] -= 1
            self._changing += Counter()  # none of nothing
            self._apply_passed_over()

    def note_own(self, name: str, entry: dict[str, Any] | None) -> None:
        """Take note that a replica was added here, with this entry."""
        if entry is not None:
            self._entries[name] = entry

    def take(self, record: MemberRecord) -> str | None:
        """Take a record in that comes from elsewhere, and make it true.

        Return what was done, in words; None where nothing had to be.
        """
        return self._apply(record) if self.roster.take(record) else None

    def hold(self) -> None:
        """Have everybody rest or gone that is to be: whoever has come since by another way too."""
        self._apply_passed_over()
        for record in list(self.roster.all().values()):
            found = self._found(record.name)
            if record.rest is Rest.HERE:
                if found is None and record.entry is not None:
                    self._apply(record)
            elif found is not None and (
                record.rest is Rest.REMOVED or not found.members[record.name].draining
            ):
                self._apply(record)

    def own_removed(self) -> list[MemberRecord]:
        """Removals of added replicas that this gateway's file names as well: it would bring them back once the others
        have forgotten, so the others are to take them for a file's."""
        configured = self._gateway.configured()
        return [
            record
            for name in configured
            if (record := self.roster.get(name)) is not None
            and record.rest is Rest.REMOVED
            and not record.is_a_files
        ]

    def _apply_passed_over(self) -> None:
        """Make true what came while somebody changed the same here."""
        for name in list(self._passed_over - self._changing.keys()):
            self._passed_over.discard(name)
            if (known := self.roster.get(name)) is not None:
                self._apply(known)

    async def close(self) -> None:
        for task in list(self._removing.values()):
            task.cancel()
        await asyncio.gather(*self._removing.values(), return_exceptions=True)

    # -- inside ----------------------------------------------------------------------------------------

    def _found(self, name: str) -> Pool | None:
        """The pool that has a replica which is not leaving."""
        if name in self._removing:
            return None
        return next((pool for pool in self._gateway.pools.values() if name in pool.members), None)

    def _apply(self, record: MemberRecord) -> str | None:
        if record.name in self._changing:
            self._passed_over.add(record.name)
            return None
        if self._failed.get(record.name) == record.rank:
            return None
        try:
            return self._made(record)
        except WeighbridgeError as error:
            self._failed[record.name] = record.rank
            log.warning("replica %s was %s by %s, which cannot be done here: %s",
                        record.name, record.in_words(), record.by, error)  # fmt: skip
            return None

    def _made(self, record: MemberRecord) -> str | None:
        name, pool = record.name, self._found(record.name)
        if pool is not None and not is_shared(pool.members[name].spec):
            return None  # one of the same name that this gateway has started itself
        if record.rest is Rest.REMOVED:
            return self._remove(name, pool)
        if pool is None:
            pool = self._add(record)
            if pool is None:
                return None
        else:
            self._change(record, pool)
        member = pool.members[name]
        if member.draining and record.rest is Rest.HERE:
            pool.undrain(name)
        elif not member.draining and record.rest is Rest.DRAINING:
            pool.drain(name)
        return record.in_words()

    def _remove(self, name: str, pool: Pool | None) -> str | None:
        self._entries.pop(name, None)
        if pool is None:
            return None
        pool.drain(name)
        task = asyncio.create_task(pool.remove(name, LAST_WORK))
        self._removing[name] = task
        task.add_done_callback(lambda _: self._removing.pop(name, None))
        return "removed"

    def _add(self, record: MemberRecord) -> Pool | None:
        """Add who is to be here; None where that is not ours to say."""
        own = self._gateway.configured().get(record.name)
        if own is not None:
            pool, spec = own
        elif record.entry is not None:
            pool, spec = self._gateway.pool(record.model), shared_spec(record.entry, record.name)
            self._entries[record.name] = record.entry
        else:
            if record.is_secret:
                raise BadInput(
                    "its entry has a secret, which is not shared; name a variable (`key_env`) instead"
                )
            return None
        if record.name in self._removing:  # it is on its way out, and comes back when it is gone
            return None
        pool.add(spec)
        return pool

    def _change(self, record: MemberRecord, pool: Pool) -> None:
        """Where a replica of the same name has become another one, that is what is here."""
        before = self._entries.get(record.name)
        if record.entry is None or before is None or before == record.entry:
            return
        pool.replace(shared_spec(record.entry, record.name))
        self._entries[record.name] = record.entry


def shared_spec(entry: Mapping[str, Any], name: str) -> ReplicaSpec:
    """The replica that a shared entry stands for. Raises BadInput, also for one that is no other gateway's to start."""
    given = {key: one for key, one in entry.items() if key != "for"}
    spec = next((one for one in expanded(replica_from_json(given, name)) if one.name == name), None)
    if spec is None or not is_shared(spec):
        raise BadInput(f"the shared entry of {name!r} is not that of one server with a `url:`")
    return spec
