"""What gateways tell each other of tenants: keys that were made and revoked at run time, by their hashes, and limits
that were set. Pure.

That a key was revoked is told with a version beyond all others, so that it wins over whatever else is said of that key.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from weighbridge.fleet.limits.stated import LimitsAsked
from weighbridge.fleet.peers.registers import MOST_VERSIONS, REMOVED_KEPT, SharedRecord
from weighbridge.wire.ask import LONGEST_NAME

#: The version with which it is told that a key was revoked; any other of a key is below it.
REVOKED = MOST_VERSIONS
#: Keys and limits that gateways may tell each other of, and how many of those are left for keys that are revoked.
MOST_TENANT_RECORDS, ROOM_FOR_REVOKED = 10_000, 1_000

_Tenant = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class KeyRecord(SharedRecord, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="key"):
    """A key by its hash, in hexadecimal. `expires`: epoch seconds; None: never."""

    tenant: _Tenant
    digest: _Digest
    expires: Annotated[float, msgspec.Meta(ge=0.0, le=1e11)] | None = None

    @property
    def is_revoked(self) -> bool:
        return self.version == REVOKED

    def check(self) -> None:
        if self.name != name_of_key(self.digest) or not self.tenant.isprintable():
            raise ValueError("its name is another one's")

    def is_past(self, now: float) -> bool:
        """Whether the key has been of no use for long, revoked or not. A revoked one without an end is kept: some
        gateway's change log may say that it was made."""
        return self.expires is not None and self.expires < now - REMOVED_KEPT


class LimitsRecord(SharedRecord, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="limits"):
    """Limits that were set; None: those of the configuration hold again.

    `configured`: what the configuration of the gateway said of the tenant where they were set; None: nothing.
    """

    tenant: _Tenant
    limits: LimitsAsked | None = None
    configured: LimitsAsked | None = None

    def check(self) -> None:
        if self.name != name_of_limits(self.tenant) or not self.tenant.isprintable():
            raise ValueError("its name is another one's")
        for one in (self.limits, self.configured):
            if one is not None and one.zone is not None and one.usd_per_day is None:
                raise ValueError("a zone is that of usd_per_day, which is missing")

    def is_past(self, now: float) -> bool:
        return self.limits is None and self.at < now - REMOVED_KEPT


TenantRecord = KeyRecord | LimitsRecord


def name_of_key(digest: str) -> str:
    """The name of the record of a key."""
    return f"key:{digest}"


def name_of_limits(tenant: str) -> str:
    """The name of the record of a tenant's limits."""
    return f"limits:{tenant}"
