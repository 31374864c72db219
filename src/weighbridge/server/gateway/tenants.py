"""Keys and limits of tenants that an operator changed while the gateway ran: what was changed, and what holds.

A key is made once, told once, and known by its hash from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import TenantSpec
from weighbridge.fleet.limits.periods import zone_of
from weighbridge.fleet.limits.tenant import NO_LIMITS, TenantLimits
from weighbridge.wire.keys import HASH

#: Characters of a hash that name a key; those of a hash of the hash, so that they give nothing away of a weak one.
ID_LENGTH = 12
#: Keys of a tenant that may be good at the same time: one, and the one that takes its place.
MOST_KEYS = 2
#: Tenants that may have something changed.
MOST_TENANTS = 10_000
#: The largest limit that can be set.
_MOST = 10**15
#: What limits are called, and the unit of each for people.
UNITS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrent_tokens": "tokens at one time",
    "usd_per_day": "USD a day",
}


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


def key_id(digest: bytes) -> str:
    """What a key is called where people see it."""
    return sha256(digest).hexdigest()[:ID_LENGTH]


@dataclass(frozen=True, slots=True)
class TenantChange:
    """One change. `at`: epoch seconds. `before`, `after`: in words; None: there was, or is, nothing of it.

    `limits`: those set. `configured`: what the configuration said of them then; None: nothing.
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

    def told(self) -> dict[str, Any]:
        """For people: without the hash."""
        told = asdict(self)
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


# -- limits ------------------------------------------------------------------------------------------------


class LimitsAsked(Struct, forbid_unknown_fields=True):
    """The limits of a tenant; what is left out, or null, is no limit. `zone`: by whose days `usd_per_day` counts."""

    requests_per_minute: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    tokens_per_minute: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    concurrent_tokens: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    usd_per_day: Annotated[float, Meta(gt=0.0, le=float(_MOST))] | None = None
    zone: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


class NewKey(Struct, forbid_unknown_fields=True):
    """A key to be made. `expires`: a day, until whose end (UTC) it is good, or a moment; null: it is good for ever."""

    expires: Annotated[str, Meta(max_length=40)] | None = None


def limits_of(value: LimitsAsked | Mapping[str, Any]) -> TenantLimits:
    """Limits as they are sent and written. Raises BadInput naming what is wrong."""
    try:
        asked = value if isinstance(value, LimitsAsked) else msgspec.convert(value, LimitsAsked)
    except msgspec.ValidationError as error:
        raise BadInput(f"limits: {error}", param="limits") from None
    if asked.zone is not None:
        zone_of(asked.zone)
        if asked.usd_per_day is None:
            raise BadInput("zone: is that of usd_per_day, which is missing", param="zone")
    return TenantLimits(**msgspec.structs.asdict(asked))


def written(limits: TenantLimits) -> dict[str, Any]:
    """Limits as `limits_of` reads them, without those that are none."""
    return {name: value for name, value in asdict(limits).items() if value is not None}


def in_words(limits: TenantLimits | None) -> str | None:
    if limits is None:
        return None
    said = [f"{getattr(limits, name):g} {unit}" for name, unit in UNITS.items() if getattr(limits, name)]
    if limits.zone is not None:
        said[-1] += f" in {limits.zone}"
    return ", ".join(said) or "no limits"


# -- what all changes come to ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Limits by an operator's word, and what the configuration said when it was given."""

    limits: TenantLimits
    configured: TenantLimits | None


@dataclass(slots=True)
class TenantStandings:
    """What all changes come to. `made`: keys by their hash in hexadecimal. `revoked`: whose they were."""

    made: dict[str, tuple[str, MadeKey]] = field(default_factory=dict)
    revoked: dict[str, str] = field(default_factory=dict)
    limits: dict[str, SetLimits] = field(default_factory=dict)

    def take(self, change: TenantChange) -> None:
        key = change.key
        match change.act:
            case TenantAct.CREATE_KEY if key is not None:
                self.made[key.digest] = change.tenant, key
            case TenantAct.REVOKE_KEY if key is not None:
                self.made.pop(key.digest, None)
                self.revoked[key.digest] = change.tenant
            case TenantAct.SET_LIMITS:
                before = None if change.configured is None else limits_of(change.configured)
                self.limits[change.tenant] = SetLimits(limits_of(change.limits or {}), before)
            case TenantAct.RESET_LIMITS:
                self.limits.pop(change.tenant, None)


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
        self.standing = standing

    def configured_limits(self, tenant: str) -> TenantLimits | None:
        """What the configuration says of a tenant's limits; None where it does not name the tenant."""
        spec = self._specs.get(tenant)
        return None if spec is None else spec.limits

    def names(self) -> list[str]:
        """Tenants that are configured or that have something changed."""
        changed = {tenant for tenant, _ in self.standing.made.values()} | self.standing.limits.keys()
        return list(dict.fromkeys([*self._specs, *sorted(changed)]))

    def keys(self, tenant: str) -> list[TenantKey]:
        """The keys of a tenant that were not revoked, those of the configuration first."""
        own = [one for one in self._digests.get(tenant, ()) if one.digest not in self.standing.revoked]
        there = {one.digest for one in own}
        made = [
            key for whose, key in self.standing.made.values() if whose == tenant and key.digest not in there
        ]
        return [TenantKey(tenant, one, True) for one in own] + [TenantKey(tenant, one, False) for one in made]

    def made_keys(self) -> Iterator[tuple[str, MadeKey]]:
        """Keys that an operator made and that are not in the configuration by now, also expired ones: whoever sends
        one is told so, and a gateway whose keys have all expired lets nobody in."""
        configured = {one.digest for keys in self._digests.values() for one in keys}
        for tenant, key in self.standing.made.values():
            if key.digest not in configured:
                yield tenant, key

    def limits(self) -> dict[str, TenantLimits]:
        """Limits that an operator set and that hold: the configuration has not changed what it says of them since."""
        return {
            tenant: one.limits
            for tenant, one in self.standing.limits.items()
            if self.configured_limits(tenant) == one.configured
        }

    def overruled(self) -> list[str]:
        """Sentences on what was changed once and is not so any more, or is so against the configuration."""
        said = []
        for tenant, one in self.standing.limits.items():
            configured = self.configured_limits(tenant)
            if configured != one.configured:
                now = in_words(NO_LIMITS if configured is None else configured)
                said.append(
                    f"limits of tenant {tenant} had been set by an operator, and the configuration says others now: "
                    f"the configuration holds ({now})"
                )
        named = {one.digest: tenant for tenant, keys in self._digests.items() for one in keys}
        for digest, tenant in self.standing.revoked.items():
            if digest in named:
                said.append(
                    f"key {key_id(bytes.fromhex(digest))} of tenant {tenant} was revoked and stays so, though the "
                    "configuration names it: take it out there"
                )
        said += [
            f"key {key_id(bytes.fromhex(digest))} had been made by an operator, and the configuration names it for "
            f"tenant {named[digest]} now: the configuration holds"
            for digest in self.standing.made.keys() & named.keys()
        ]
        return said


def hash_text(digest: str) -> str:
    """A hash as a configuration writes it."""
    return HASH + digest
