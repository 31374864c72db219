"""API keys of a gateway: tenants, expiry, and the operator's own key."""

from __future__ import annotations

import hmac
import time
from hashlib import blake2b

from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.server.gateway.request import Headers
from weighbridge.wire.errors import ApiError


class Keys:
    """Looks tenants up by the digest of their key, so that comparing takes the same time for all."""

    def __init__(self, spec: FleetSpec) -> None:
        self._admin = spec.admin_key
        self._tenants = {
            _digest(key.secret): (tenant.name, key.expires) for tenant in spec.tenants for key in tenant.keys
        }

    def tenant(self, headers: Headers) -> str | None:
        """The tenant of the caller's key; None when no keys are asked for. Raises ApiError 401."""
        if not self._tenants:
            return None
        found = self._tenants.get(_digest(_given(headers)))
        if found is None:
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key")
        tenant, expires = found
        if expires is not None and time.time() >= expires:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires))
            raise ApiError(401, f"this API key expired at {day}; ask for a new one", code="expired_api_key")
        return tenant

    def check_admin(self, headers: Headers) -> None:
        """Raises ApiError 401 or 403 unless the operator's key was sent."""
        if self._admin is None:
            message = "replicas cannot be changed at run time: the configuration has no admin_key"
            raise ApiError(403, message, code="admin_disabled")
        if not hmac.compare_digest(_given(headers).encode(), self._admin.encode()):
            message = "the admin key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_admin_key")


def _given(headers: Headers) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _digest(secret: str) -> bytes:
    return blake2b(secret.encode(), digest_size=32).digest()
