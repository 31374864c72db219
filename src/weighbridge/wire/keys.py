"""API keys: whose request it is. One reader for every door.

A key is known by its SHA-256, so that the file with the keys need not hold one: `sha256:HEX` stands for the key in
every place where a key is configured. A slow hash would protect what people can remember, and costs each request its
time; a key is meant to be as long and random as `weighbridge keys new` makes it, and then trying is of no use.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.errors import ApiError

log = logging.getLogger("weighbridge.server")

#: What a key begins with where its hash is written in its place.
HASH = "sha256:"
#: Characters of a key below which somebody may guess it.
SHORTEST_KEY = 16

_DIGEST = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A secret, or its hash, and the tenant it stands for. `expires`: epoch seconds; None: never."""

    tenant: str
    secret: Secret
    expires: float | None = None


class TenantPriority(NamedTuple):
    """The most urgent class that a tenant may ask for; a lower number is more urgent."""

    tenant: str
    priority: int

    def __str__(self) -> str:
        return f"{self.tenant}={self.priority}"


def parse_tenant_priority(text: str) -> TenantPriority:
    """Read TENANT=CLASS. Raises BadInput for anything else."""
    tenant, _, number = text.rpartition("=")
    if not tenant or not number.removeprefix("-").isdecimal():
        message = (
            f"--tenant-priority {text!r}: write TENANT=CLASS, where CLASS is a whole number such as 0 or -5"
        )
        raise BadInput(message, param="tenant_priorities")
    return TenantPriority(tenant, int(number))


def parse_key(text: str) -> ApiKey:
    """Read KEY or TENANT=KEY, where KEY may be `sha256:HEX`. The `==` at the end of base64 names no tenant.

    Raises BadInput for an empty part or a hash that is none.
    """
    tenant, separator, secret = text.partition("=")
    if not separator or (secret and not secret.strip("=")):
        tenant, secret = "default", text
    if not tenant or not secret:
        hint = "write KEY or TENANT=KEY; a key that ends in = is written with its TENANT="
        raise BadInput(f"--api-key: {hint}", param="api_key")
    key = ApiKey(tenant, Secret(secret))
    try:
        digest_of(key.secret)
    except BadInput as error:
        raise BadInput(f"--api-key: {error}", param="api_key") from None
    return key


def new_key() -> Secret:
    """Make a key of 256 random bits."""
    return Secret("wb-" + secrets.token_urlsafe(32))


def hash_of(key: Secret) -> str:
    """Return what may be written in a key's place: `sha256:HEX`."""
    return HASH + _digest(key).hex()


def digest_of(key: Secret) -> bytes:
    """Return the digest a key is known by: its own, or the one that `sha256:HEX` writes down.

    Raises BadInput for a hash that is none; its words do not show it.
    """
    text = key.reveal()
    if not text.startswith(HASH):
        return _digest(key)
    if _DIGEST.fullmatch(text.removeprefix(HASH)) is None:
        raise BadInput(f"a hash is {HASH} and 64 hexadecimal digits; `weighbridge keys hash` makes one")
    return bytes.fromhex(text.removeprefix(HASH))


def is_short(key: Secret) -> bool:
    """Whether a key is short enough to be guessed; of a hash nobody can tell."""
    return len(key.reveal()) < SHORTEST_KEY


class Keys:
    """Looks tenants up by the digest of their key.

    An early end of that comparison tells nothing: whoever sends keys cannot choose the digests that are compared.
    """

    def __init__(self, keys: Iterable[ApiKey] = (), admin: Secret | None = None) -> None:
        """`admin`: the operator's own key, which may change replicas; None: nobody may. Raises BadInput."""
        known = tuple(keys)
        self._revoked: set[bytes] = set()
        self.are_asked = bool(known)  # whether a caller needs a key; not less so once all are revoked
        self._admin = digest_of(admin) if admin is not None else None
        self._tenants = {digest_of(key.secret): (key.tenant, key.expires) for key in known}
        short = sorted({repr(key.tenant) for key in known if is_short(key.secret)})
        short += ["the operator (admin_key)"] if admin is not None and is_short(admin) else []
        if short:
            made = "`weighbridge keys new` makes better ones"
            log.warning(
                "keys of fewer than %d characters can be guessed; %s: %s",
                SHORTEST_KEY,
                made,
                ", ".join(short),
            )

    @property
    def has_admin(self) -> bool:
        """Whether there is an operator's key."""
        return self._admin is not None

    def admit(self, key: ApiKey) -> None:
        """Let a key in from the next request on. Raises BadInput for a hash that is none."""
        self._tenants[digest_of(key.secret)] = key.tenant, key.expires

    def revoke(self, digest: bytes) -> None:
        """Let a key in no more, from the next request on, whatever said that it is good."""
        self._revoked.add(digest)

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the operator's key."""
        return self._admin is not None and hmac.compare_digest(_digest(bearer(headers)), self._admin)

    def tenant(self, headers: Mapping[str, str]) -> str | None:
        """Return the tenant of the caller's key; None when no keys are asked for. Raises ApiError 401."""
        if not self.are_asked:
            return None
        digest = _digest(bearer(headers))
        entry = self._tenants.get(digest)
        if digest in self._revoked:
            raise ApiError(401, "this API key was revoked; ask for a new one", code="revoked_api_key")
        if entry is None:
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key")
        tenant, expires = entry
        if expires is not None and time.time() >= expires:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires))
            raise ApiError(401, f"this API key expired at {day}; ask for a new one", code="expired_api_key")
        return tenant

    def check_admin(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 or 403 unless the operator's key was sent."""
        if self._admin is None:
            message = "this is for the operator alone: configure an admin_key (--admin-key, or admin_key: in a file)"
            raise ApiError(403, message, code="admin_disabled")
        if not self.is_admin(headers):
            message = "the admin key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_admin_key")


def bearer(headers: Mapping[str, str]) -> Secret:
    """The secret in `Authorization: Bearer SECRET`, or in `x-api-key`, as Anthropic's clients send it; empty where
    there is none. The scheme's case does not matter.

    Headers are read as Latin-1, each byte a character; a key is what its bytes are in UTF-8.
    """
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        sent = headers.get("x-api-key", "")
    sent = sent.strip(" \t")  # and no other space: in UTF-8 the last byte of à is one in Latin-1
    return Secret(sent.encode("latin-1", "backslashreplace").decode("utf-8", "surrogateescape"))


def _digest(secret: Secret) -> bytes:
    return sha256(secret.reveal().encode("utf-8", "surrogateescape")).digest()
