"""A change of a tenant's keys or limits is made: told to the other gateways, written down, and so from the next request
on; one that another gateway made is written down and so here too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.limits.stated import LimitsAsked, in_words, limits_of, written
from weighbridge.fleet.peers.board import Outdated
from weighbridge.fleet.peers.peers import Contested, Peers, contested
from weighbridge.fleet.peers.tenant_records import KeyRecord, LimitsRecord, TenantRecord
from weighbridge.fleet.peers.tenants import SharedTenants, TooManyTold
from weighbridge.secret import Secret
from weighbridge.server.gateway.changes import ChangeLog, NotWritten
from weighbridge.server.gateway.tenants import (
    MadeKey,
    TenantAct,
    TenantChange,
    Tenants,
    hash_text,
    key_record,
    limits_record,
)
from weighbridge.wire.keys import ApiKey, Keys

log = logging.getLogger("weighbridge.fleet")


class TenantChanges:
    """Makes changes, one at a time: whoever asks for one has its `turn`, and looks at what is so in it."""

    def __init__(
        self,
        gateway: Gateway,
        keys: Keys,
        changes: ChangeLog,
        tenants: Tenants,
        peers: Peers | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.turn = asyncio.Lock()
        self._gateway = gateway
        self._keys = keys
        self._log = changes
        self._tenants = tenants
        self._peers = peers
        self._clock = clock
        self._shared: SharedTenants | None = None if peers is None else peers.tenants

    def start(self) -> None:
        """Have the limits that were set hold again, and hear from now on what other gateways change."""
        for tenant in self._tenants.standing.limits:
            self._gateway.limiter.set_limits(tenant, self._tenants.limits_now(tenant))
        for sentence in self._tenants.overruled():
            log.warning(sentence)
        if self._shared is not None:
            self._shared.begin(self._tenants.standing.records(), self.hear)

    # -- what an operator does here: each returns whether the others were told, None where there are none -----

    async def create_key(self, who: str, tenant: str, key: MadeKey) -> bool | None:
        """Raises NotWritten, TooManyTold and Contested; then there is no such key."""
        return await self._make(who, TenantAct.CREATE_KEY, tenant, None, key.in_words(), key=key)

    async def revoke_key(self, who: str, tenant: str, key: MadeKey) -> bool | None:
        """Raises NotWritten, and TooManyTold where it is revoked here and the others could not be told."""
        return await self._make(who, TenantAct.REVOKE_KEY, tenant, key.in_words(), None, key=key)

    async def set_limits(self, who: str, tenant: str, limits: LimitsAsked) -> bool | None:
        """Raises NotWritten, TooManyTold, and Contested where another gateway was quicker."""
        wanted, configured = limits_of(limits), self._tenants.configured_limits(tenant)
        before = in_words(self._gateway.limiter.limits(tenant))
        was = None if configured is None else written(configured)
        more = {"limits": written(wanted), "configured": was}
        return await self._make(who, TenantAct.SET_LIMITS, tenant, before, in_words(wanted), **more)

    async def reset_limits(self, who: str, tenant: str) -> bool | None:
        """Raises what `set_limits` does."""
        before = in_words(self._gateway.limiter.limits(tenant))
        return await self._make(
            who, TenantAct.RESET_LIMITS, tenant, before, self._words_of_configured(tenant)
        )

    async def _make(
        self, who: str, act: TenantAct, tenant: str, before: str | None, after: str | None, **more: Any
    ) -> bool | None:
        peers, shared = self._peers, self._shared
        by = who if shared is None or peers is None else peers.who(who)
        change = TenantChange(self._clock(), by, act, tenant, before, after, **more)
        if shared is None or peers is None:
            await asyncio.to_thread(self._log.write, change)
            self._hold(change)
            return None
        if act is TenantAct.REVOKE_KEY:  # it holds here whatever the others say
            await asyncio.to_thread(self._log.write, change)
            self._hold(change)
            return await self._told_revoked(change, peers, shared)
        change, is_told = await self._told(change, peers, shared)
        self._hold(change)
        return is_told

    async def _told_revoked(self, change: TenantChange, peers: Peers, shared: SharedTenants) -> bool:
        record = key_record(change)
        shared.roster.take(record)
        try:
            return await peers.tell(record, None)
        except Outdated:
            return True  # somebody else has revoked it
        except TooManyTold as error:
            raise TooManyTold(f"the key is revoked at this gateway alone: {error}") from None

    async def _told(
        self, change: TenantChange, peers: Peers, shared: SharedTenants
    ) -> tuple[TenantChange, bool]:
        """Tell the others of a change and write it down. Return it with the version that it has among them, and whether
        they were told."""
        is_key = change.act is TenantAct.CREATE_KEY
        known = None if is_key else shared.roster.get(limits_record(change, 1).name)
        if known is None:
            shared.check_room()
        version = 0 if known is None else known.version
        record: TenantRecord = key_record(change) if is_key else limits_record(change, version + 1)
        try:
            is_told = await peers.tell(record, version)
        except Outdated as stands:
            await self._take(stands.record, shared)
            raise _contested(stands.record) from None
        change = replace(change, version=record.version)
        try:
            await asyncio.to_thread(self._log.write, change)
        except NotWritten:
            await self._take_back(change, peers, shared)
            raise
        shared.roster.take(record)
        return change, is_told

    async def _take_back(self, change: TenantChange, peers: Peers, shared: SharedTenants) -> None:
        """Tell the others that what they were told is not so."""
        by = peers.who("a change log that could not be written")
        undone = replace(change, at=self._clock(), changed_by=by)
        record: TenantRecord
        if change.act is TenantAct.CREATE_KEY:
            record = key_record(replace(undone, act=TenantAct.REVOKE_KEY))
        else:
            before = self._tenants.standing.limits.get(change.tenant)
            limits = None if before is None else written(before.limits)
            configured = None if before is None or before.configured is None else written(before.configured)
            undone = replace(undone, limits=limits, configured=configured)
            record = limits_record(undone, (change.version or 1) + 1)
        shared.roster.take(record)
        try:
            await peers.tell(record, None)
        except Outdated as stands:
            await self._take(stands.record, shared)

    # -- what is done elsewhere ------------------------------------------------------------------------

    async def hear(self, records: Sequence[TenantRecord]) -> None:
        """Write down what other gateways did, and have it so here, as far as the configuration leaves it open."""
        assert self._shared is not None
        async with self.turn:
            # Whoever had the turn before may have changed the same, knowing of this, or have made this very change.
            await self._make_so(
                [
                    one
                    for one in records
                    if self._shared.roster.get(one.name) is one and not self._tenants.standing.knows(one)
                ]
            )

    async def _take(self, record: Any, shared: SharedTenants) -> None:
        """Take in what stands against a change. Only within a turn."""
        if shared.roster.take(record):
            await self._make_so([record])

    async def _make_so(self, records: Sequence[TenantRecord]) -> None:
        changes = [change for one in records if (change := self._heard(one)) is not None]
        if not changes:
            return
        await asyncio.to_thread(self._log.write_heard, changes)
        for change in changes:
            self._hold(change)
            log.info("tenant %s: %s by %s", change.tenant, change.in_words(), change.changed_by)
            if change.act is TenantAct.SET_LIMITS or change.key is not None:
                for sentence in self._tenants.overruled_by(change):
                    log.warning(sentence)

    def _heard(self, record: TenantRecord) -> TenantChange | None:
        """What another gateway did, as a change here; None where it changes nothing."""
        if isinstance(record, KeyRecord):
            return self._heard_key(record)
        return self._heard_limits(record)

    def _heard_key(self, record: KeyRecord) -> TenantChange | None:
        key, standing = MadeKey(record.digest, record.expires), self._tenants.standing
        if record.digest in standing.revoked:
            return None
        if record.is_revoked:
            act, before, after = TenantAct.REVOKE_KEY, key.in_words(), None
        elif not self._keys.are_asked:
            log.warning(
                "key %s of tenant %s was made by %s: this gateway asks nobody for a key, so it changes nothing here",
                key.id,
                record.tenant,
                record.by,
            )
            return None
        else:
            act, before, after = TenantAct.CREATE_KEY, None, key.in_words()
        return TenantChange(
            record.at, record.by, act, record.tenant, before, after, key=key, version=record.version
        )

    def _heard_limits(self, record: LimitsRecord) -> TenantChange | None:
        tenant, limits, configured = record.tenant, record.limits, record.configured
        before = in_words(self._gateway.limiter.limits(tenant))
        if limits is None:
            after = self._words_of_configured(tenant)
            return TenantChange(
                record.at, record.by, TenantAct.RESET_LIMITS, tenant, before, after, version=record.version
            )
        try:
            wanted = limits_of(limits)
            was = None if configured is None else written(limits_of(configured))
        except BadInput as error:  # a time zone that this machine does not know
            log.warning(
                "limits of tenant %s were set by %s, which cannot be done here: %s", tenant, record.by, error
            )
            return None
        return TenantChange(
            record.at,
            record.by,
            TenantAct.SET_LIMITS,
            tenant,
            before,
            in_words(wanted),
            limits=written(wanted),
            configured=was,
            version=record.version,
        )

    # -- inside ----------------------------------------------------------------------------------------

    def _hold(self, change: TenantChange) -> None:
        """Have what was written down be so."""
        key = change.key
        if key is None:
            limits = self._tenants.limits_now(change.tenant)
            self._gateway.limiter.set_limits(change.tenant, limits)
        elif change.act is TenantAct.REVOKE_KEY:
            self._keys.revoke(bytes.fromhex(key.digest))
        elif not self._tenants.is_configured(key.digest):
            self._keys.admit(ApiKey(change.tenant, Secret(hash_text(key.digest)), key.expires))

    def _words_of_configured(self, tenant: str) -> str | None:
        own = self._tenants.configured_limits(tenant)
        return in_words(self._gateway.spec.default_limits if own is None else own)


def _contested(record: Any) -> Contested:
    what = "key" if isinstance(record, KeyRecord) else "limits"
    return contested(f"{what} of tenant {record.tenant!r} changed", record)
