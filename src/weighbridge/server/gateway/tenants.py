"""Keys and limits of tenants that an operator changed while the gateway ran: what was changed, and what holds.

A key is made once, told once, and known by its hash from then on.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.fleet.config.spec import TenantSpec
from weighbridge.fleet.limits.stated import LimitsAsked, in_words, limits_of, written
from weighbridge.fleet.limits.tenant import NO_LIMITS, TenantLimits
from weighbridge.fleet.peers.registers import LONGEST_WHO, rank_of
from weighbridge.fleet.peers.tenant_records import (
    REVOKED,
    KeyRecord,
    LimitsRecord,
    TenantRecord,
    name_of_key,
    name_of_limits,
)
from weighbridge.wire.keys import HASH

#: Characters of a hash that name a key; those of a hash of the hash, so that they give nothing away of a weak one.
ID_LENGTH = 12
#: Keys of a tenant that may be good at the same time: one, and the one that takes its place.
MOST_KEYS = 2
#: Tenants that may have something changed.
MOST_TENANTS = 10_000


class TenantAct(StrEnum):
    """What was done to a tenant."""

    CREATE_KEY = "create_key"
    REVOKE_KEY = "revoke_key"
    SET_LIMITS = "set_limits"
    RESET_LIMITS = "reset_limits"


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key by its hash, in hexadecimal. `expires`: epoch seconds; None: never."""

    digest: str
    expires: float | None = None

    @property
    def id(self) -> str:
        return key_id(bytes.fromhex(self.digest))

    def is_good(self, now: float) -> bool:
        return self.expires is None or now < self.expires

    def in_words(self) -> str:
        if self.expires is None:
            return f"key {self.id}, good until it is revoked"
        return f"key {self.id}, good until {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(self.expires))}"


def key_id(digest: bytes) -> str:
    """What a key is called where people see it."""
    return sha256(digest).hexdigest()[:ID_LENGTH]


@dataclass(frozen=True, slots=True)
class TenantChange:
    """One change. `at`: epoch seconds. `before`, `after`: in words; None: there was, or is, nothing of it.

    `limits`: those set. `configured`: what the configuration said of them then; None: nothing. `version`: the one that
    it has among gateways that share; None: it follows the one before.
    """

    at: float
    changed_by: str
    act: TenantAct
    tenant: str
    before: str | None
    after: str | None
    key: MadeKey | None = None
    limits: dict[str, Any] | None = None
    configured: dict[str, Any] | None = None
    version: int | None = None

    def in_words(self) -> str:
        return f"{self.act.replace('_', ' ')}: {self.before or 'not there'} -> {self.after or 'gone'}"

    def told(self) -> dict[str, Any]:
        """For people: without the hash."""
        told = asdict(self)
        del told["version"]
        key = told.pop("key")
        if self.key is not None and key is not None:
            told["key"] = {"id": self.key.id, "expires": self.key.expires}
        return told


def read_change(line: Mapping[str, Any]) -> TenantChange:
    """A change from its line. Raises what `msgspec.convert` does, KeyError, ValueError and BadInput."""
    change = msgspec.convert({**line, "act": TenantAct(line["act"])}, TenantChange)
    is_of_key = change.act in (TenantAct.CREATE_KEY, TenantAct.REVOKE_KEY)
    if is_of_key and (change.key is None or len(bytes.fromhex(change.key.digest)) != sha256().digest_size):
        raise ValueError("a key has no hash")
    if change.act is TenantAct.SET_LIMITS:
        limits_of(change.limits or {})
    return change


class NewKey(Struct, forbid_unknown_fields=True):
    """A key to be made. `expires`: a day, until whose end (UTC) it is good, or a moment; null: it is good for ever."""

    expires: Annotated[str, Meta(max_length=40)] | None = None


# -- what all changes come to ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Limits by an operator's word, and what the configuration said when it was given."""

    limits: TenantLimits
    configured: TenantLimits | None


@dataclass(frozen=True, slots=True)
class ChangeMark:
    """The last change of a key or of a tenant's limits: its version among gateways, when it was made and by whom."""

    version: int
    at: float
    by: str

    @property
    def rank(self) -> tuple[int, float, str]:
        """As records of gateways have it."""
        return rank_of(self.version, self.at, self.by)


@dataclass(slots=True)
class TenantStandings:
    """What all changes come to. `made`, `revoked`: keys by their hash in hexadecimal, and whose they are or were.
    `marks`: of the last change of everything, by the name that it has among gateways."""

    made: dict[str, tuple[str, MadeKey]] = field(default_factory=dict)
    revoked: dict[str, tuple[str, MadeKey]] = field(default_factory=dict)
    limits: dict[str, SetLimits] = field(default_factory=dict)
    marks: dict[str, ChangeMark] = field(default_factory=dict)
    _made_of: dict[str, dict[str, MadeKey]] = field(default_factory=dict, repr=False)  # by tenant

    def made_of(self, tenant: str) -> Collection[MadeKey]:
        """The keys that were made for a tenant and are not revoked."""
        return self._made_of.get(tenant, {}).values()

    def take(self, change: TenantChange) -> None:
        key = change.key
        match change.act:
            case TenantAct.CREATE_KEY if key is not None:
                if key.digest in self.revoked:  # whatever came later
                    return
                self._unmake(key)
                self.made[key.digest] = change.tenant, key
                self._made_of.setdefault(change.tenant, {})[key.digest] = key
            case TenantAct.REVOKE_KEY if key is not None:
                self._unmake(key)
                self.revoked[key.digest] = change.tenant, key
            case TenantAct.SET_LIMITS:
                before = None if change.configured is None else limits_of(change.configured)
                self.limits[change.tenant] = SetLimits(limits_of(change.limits or {}), before)
            case TenantAct.RESET_LIMITS:
                self.limits.pop(change.tenant, None)
        self._mark(change)

    def _unmake(self, key: MadeKey) -> None:
        known = self.made.pop(key.digest, None)
        if known is not None:
            left = self._made_of[known[0]]
            del left[key.digest]
            if not left:
                del self._made_of[known[0]]

    def knows(self, record: TenantRecord) -> bool:
        """Whether what a record says, or something newer, is among the changes."""
        mark = self.marks.get(record.name)
        return mark is not None and mark.rank >= record.rank

    def _mark(self, change: TenantChange) -> None:
        if change.key is not None:
            name, version = name_of_key(change.key.digest), _version_of_key(change)
        else:
            name = name_of_limits(change.tenant)
            known = self.marks.get(name)
            version = change.version or (0 if known is None else known.version) + 1
        self.marks[name] = _mark_of(change, version)

    def records(self) -> list[TenantRecord]:
        """All of it, as gateways tell it each other."""
        found: list[TenantRecord] = []
        for whose in (self.made, self.revoked):
            for digest, (tenant, key) in whose.items():
                mark = self.marks[name_of_key(digest)]
                found.append(_key_record(mark, tenant, key))
        for name, mark in self.marks.items():
            kind, _, tenant = name.partition(":")
            if kind == "limits":
                one = self.limits.get(tenant)
                limits = None if one is None else _asked(one.limits)
                found.append(_limits_record(mark, tenant, limits, None if one is None else one.configured))
        return found


def key_record(change: TenantChange) -> KeyRecord:
    """A key that was made or revoked, as gateways tell it each other."""
    assert change.key is not None
    return _key_record(_mark_of(change, _version_of_key(change)), change.tenant, change.key)


def limits_record(change: TenantChange, version: int) -> LimitsRecord:
    """Limits that were set, or reset, as gateways tell it each other."""
    configured = None if change.configured is None else limits_of(change.configured)
    limits = None if change.limits is None else _asked(limits_of(change.limits))
    return _limits_record(_mark_of(change, version), change.tenant, limits, configured)


def _version_of_key(change: TenantChange) -> int:
    return REVOKED if change.act is TenantAct.REVOKE_KEY else 1


def _mark_of(change: TenantChange, version: int) -> ChangeMark:
    return ChangeMark(version, max(change.at, 0.0), change.changed_by[:LONGEST_WHO])


def _key_record(mark: ChangeMark, tenant: str, key: MadeKey) -> KeyRecord:
    return KeyRecord(
        name=name_of_key(key.digest),
        version=mark.version,
        at=mark.at,
        by=mark.by,
        tenant=tenant,
        digest=key.digest,
        expires=key.expires,
    )


def _limits_record(
    mark: ChangeMark, tenant: str, limits: LimitsAsked | None, configured: TenantLimits | None
) -> LimitsRecord:
    return LimitsRecord(
        name=name_of_limits(tenant),
        version=mark.version,
        at=mark.at,
        by=mark.by,
        tenant=tenant,
        limits=limits,
        configured=None if configured is None else _asked(configured),
    )


def _asked(limits: TenantLimits) -> LimitsAsked:
    return LimitsAsked(**written(limits))


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key as an operator sees it. `configured`: it is in the configuration."""

    tenant: str
    key: MadeKey
    configured: bool


class Tenants:
    """The tenants of a gateway as they are now: those of the configuration, changed by what an operator did since."""

    def __init__(
        self,
        configured: Sequence[TenantSpec],
        digests: Mapping[str, Sequence[MadeKey]],
        standing: TenantStandings,
    ) -> None:
        """`digests`: the keys of the configuration, by tenant. `standing`: what was changed; it goes on changing."""
        self._specs = {one.name: one for one in configured}
        self._digests = digests
        self._named = {one.digest: tenant for tenant, keys in digests.items() for one in keys}
        self.standing = standing

    def configured_limits(self, tenant: str) -> TenantLimits | None:
        """What the configuration says of a tenant's limits; None where it does not name the tenant."""
        spec = self._specs.get(tenant)
        return None if spec is None else spec.limits

    def is_configured(self, digest: str) -> bool:
        """Whether the configuration names the key with this hash."""
        return digest in self._named

    def names(self) -> list[str]:
        """Tenants that are configured or that have something changed."""
        changed = {tenant for tenant, _ in self.standing.made.values()} | self.standing.limits.keys()
        return list(dict.fromkeys([*self._specs, *sorted(changed)]))

    def keys(self, tenant: str) -> list[TenantKey]:
        """The keys of a tenant that were not revoked, those of the configuration first."""
        own = [one for one in self._digests.get(tenant, ()) if one.digest not in self.standing.revoked]
        there = {one.digest for one in own}
        made = [key for key in self.standing.made_of(tenant) if key.digest not in there]
        return [TenantKey(tenant, one, True) for one in own] + [TenantKey(tenant, one, False) for one in made]

    def made_keys(self) -> Iterator[tuple[str, MadeKey]]:
        """Keys that an operator made and that are not in the configuration by now, also expired ones: whoever sends
        one is told so, and a gateway whose keys have all expired lets nobody in."""
        for tenant, key in self.standing.made.values():
            if not self.is_configured(key.digest):
                yield tenant, key

    def is_overruled(self, tenant: str) -> bool:
        """Whether an operator set limits which do not hold, because the configuration says others than it did then."""
        one = self.standing.limits.get(tenant)
        return one is not None and self.configured_limits(tenant) != one.configured

    def limits_are_changed(self, tenant: str) -> bool:
        """Whether the limits that hold are those that an operator set."""
        return tenant in self.standing.limits and not self.is_overruled(tenant)

    def limits_now(self, tenant: str) -> TenantLimits | None:
        """The limits that hold; None: those of whoever is not named."""
        if self.limits_are_changed(tenant):
            return self.standing.limits[tenant].limits
        return self.configured_limits(tenant)

    def overruled(self) -> list[str]:
        """Sentences on what was changed once and is not so any more, or is so against the configuration."""
        there = [*self.standing.limits, *self.standing.revoked, *self.standing.made]
        return [sentence for name in there for sentence in self._against(name)]

    def overruled_by(self, change: TenantChange) -> list[str]:
        """The same of one change."""
        return self._against(change.tenant if change.key is None else change.key.digest)

    def _against(self, name: str) -> list[str]:
        """Sentences on a tenant's limits, or on the key with this hash."""
        said = []
        if self.is_overruled(name):
            configured = self.configured_limits(name)
            now = in_words(NO_LIMITS if configured is None else configured)
            said.append(
                f"limits of tenant {name} had been set by an operator, and the configuration says others: "
                f"the configuration holds ({now})"
            )
        tenant = self._named.get(name)
        if tenant is not None and name in self.standing.revoked:
            said.append(
                f"key {key_id(bytes.fromhex(name))} of tenant {tenant} was revoked and stays so, though the "
                "configuration names it: take it out there"
            )
        if tenant is not None and name in self.standing.made:
            said.append(
                f"key {key_id(bytes.fromhex(name))} had been made by an operator, and the configuration names it for "
                f"tenant {tenant}: the configuration holds"
            )
        return said


def hash_text(digest: str) -> str:
    """A hash as a configuration writes it."""
    return HASH + digest
