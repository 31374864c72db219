"""API keys: whose request it is. One reader for every door."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.errors import ApiError


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A secret and the tenant it stands for. `expires`: epoch seconds; None: never."""

    tenant: str
    secret: Secret
    expires: float | None = None


def parse_key(text: str) -> ApiKey:
    """Read KEY or TENANT=KEY. The `==` at the end of base64 names no tenant. Raises BadInput for an empty part."""
    tenant, separator, secret = text.partition("=")
    if not separator or (secret and not secret.strip("=")):
        tenant, secret = "default", text
    if not tenant or not secret:
        hint = "write KEY or TENANT=KEY; a key that ends in = is written with its TENANT="
        raise BadInput(f"--api-key: {hint}", param="api_key")
    return ApiKey(tenant, Secret(secret))


class Keys:
    """Looks tenants up by the digest of their key, so that comparing takes the same time for all."""

    def __init__(self, keys: Iterable[ApiKey] = (), admin: Secret | None = None) -> None:
        """`admin`: the operator's own key, which may change replicas; None: nobody may."""
        self._admin = _digest(admin) if admin is not None else None
        self._tenants = {_digest(key.secret): (key.tenant, key.expires) for key in keys}

    @property
    def are_asked(self) -> bool:
        """Whether a caller needs a key."""
        return bool(self._tenants)

    def is_known(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries any key of ours, a tenant's that is still good or the operator's."""
        if self._admin is not None and hmac.compare_digest(_digest(bearer(headers)), self._admin):
            return True
        try:
            return self.tenant(headers) is not None
        except ApiError:
            return False

    def tenant(self, headers: Mapping[str, str]) -> str | None:
        """Return the tenant of the caller's key; None when no keys are asked for. Raises ApiError 401."""
        if not self._tenants:
            return None
        entry = self._tenants.get(_digest(bearer(headers)))
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
            message = "replicas cannot be changed at run time: the configuration has no admin_key"
            raise ApiError(403, message, code="admin_disabled")
        if not hmac.compare_digest(_digest(bearer(headers)), self._admin):
            message = "the admin key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_admin_key")


def bearer(headers: Mapping[str, str]) -> Secret:
    """The secret in `Authorization: Bearer SECRET`; empty where there is none. The scheme's case does not matter.

    Headers are read as Latin-1, each byte a character; a key is what its bytes are in UTF-8.
    """
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return Secret("")
    return Secret(sent.strip().encode("latin-1", "backslashreplace").decode("utf-8", "surrogateescape"))


def _digest(secret: Secret) -> bytes:
    return sha256(secret.reveal().encode("utf-8", "surrogateescape")).digest()
