"""API keys: who calls, compared in constant time."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from weighbridge.server.settings import ServerSettings
from weighbridge.wire.errors import ApiError


def tenant_of_key(request: Request, settings: ServerSettings) -> str | None:
    """The tenant of the caller's key; None when the server asks for no keys. Raises ApiError 401."""
    if not settings.api_keys:
        return None
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    given = secret.strip().encode() if scheme.lower() == "bearer" else b""
    tenant = None
    for key in settings.api_keys:  # all of them, always: the time taken tells nothing
        if hmac.compare_digest(given, key.secret.encode()):
            tenant = key.tenant
    if tenant is None:
        message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
        raise ApiError(401, message, code="invalid_api_key")
    return tenant
