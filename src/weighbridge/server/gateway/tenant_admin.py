"""Keys and limits of tenants while the gateway runs: `/admin/tenants`, behind the operator's key."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.limits.stated import LimitsAsked, written
from weighbridge.server.endpoint import Audience, Endpoint, json_response
from weighbridge.server.gateway.changes import operator_of
from weighbridge.server.gateway.tenant_changes import TenantChanges
from weighbridge.server.gateway.tenants import (
    MOST_KEYS,
    MOST_TENANTS,
    MadeKey,
    NewKey,
    TenantKey,
    Tenants,
)
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.keys import Keys, digest_of, new_key

Asked = TypeVar("Asked")

#: Bytes of a request.
_LONGEST_BODY = 1 << 14
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
#: Seconds of the longest life of a key that has an end: what is written by mistake is rather longer.
_LONGEST_LIFE = 100 * 366 * 86400.0


class TenantAdmin:
    """What is changed is written down first, and holds from the next request on."""

    def __init__(
        self,
        gateway: Gateway,
        keys: Keys,
        changes: TenantChanges,
        tenants: Tenants,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gateway = gateway
        self._keys = keys
        self._changes = changes
        self._tenants = tenants
        self._clock = clock

    def endpoints(self) -> list[Endpoint]:
        one = "/admin/tenants/{tenant:path}"
        return [
            Endpoint("GET", "/admin/tenants", self.all, Audience.ALL),
            Endpoint("POST", f"{one}/keys", self.create_key, Audience.ALL),
            Endpoint("DELETE", f"{one}/keys/{{key}}", self.revoke_key, Audience.ALL),
            Endpoint("PUT", f"{one}/limits", self.set_limits, Audience.ALL),
            Endpoint("DELETE", f"{one}/limits", self.reset_limits, Audience.ALL),
        ]

    async def all(self, request: Request) -> Response:
        self._check(request)
        data = [self._told(name) for name in self._tenants.names()]
        others = written(self._gateway.spec.default_limits)
        return json_response({"object": "list", "limits_of_others": others, "data": data})

    async def create_key(self, request: Request) -> Response:
        """Make a key. It is in this answer and nowhere else. The body may have `expires`: a day (good until its end,
        UTC) or a moment."""
        self._check(request)
        tenant, asked, now = self._named(request), await _read(request, NewKey), self._clock()
        expires = _expiry(asked.expires, now)
        if not self._keys.are_asked:
            message = (
                "this gateway asks nobody for a key; give a tenant one in weighbridge.yaml first, or everybody who has "
                "none would be shut out from one moment to the next"
            )
            raise ApiError(409, message, code="keys_not_asked")
        key = new_key()
        made = MadeKey(digest_of(key).hex(), expires)
        async with self._changes.turn:
            self._check_room(tenant, now)
            is_told = await self._changes.create_key(operator_of(request), tenant, made)
        told: dict[str, Any] = {"tenant": tenant, "id": made.id, "key": key.reveal(), "expires": expires}
        told |= _others(is_told)
        response = json_response(told, 201)
        response.headers["cache-control"] = "no-store"
        return response

    async def revoke_key(self, request: Request) -> Response:
        self._check(request)
        tenant, name = self._named(request), request.path_params["key"]
        async with self._changes.turn:
            found = next((one for one in self._tenants.keys(tenant) if one.key.id == name), None)
            if found is None:
                message = f"tenant {tenant!r} has no key {name[:LONGEST_NAME]!r}"
                raise ApiError(404, message, code="key_not_found", param="key")
            is_told = await self._changes.revoke_key(operator_of(request), tenant, found.key)
        left = len(self._good(tenant, self._clock()))
        return json_response({"tenant": tenant, "revoked": name, "keys_left": left, **_others(is_told)})

    async def set_limits(self, request: Request) -> Response:
        """Limits instead of those that hold; the body has all of them, what is left out is no limit."""
        self._check(request)
        tenant, limits = self._named(request), await _read(request, LimitsAsked)
        async with self._changes.turn:
            self._check_tenants(tenant)
            is_told = await self._changes.set_limits(operator_of(request), tenant, limits)
        return json_response(self._told(tenant) | _others(is_told))

    async def reset_limits(self, request: Request) -> Response:
        """Back to what the configuration says."""
        self._check(request)
        tenant = self._named(request)
        async with self._changes.turn:
            if tenant not in self._tenants.standing.limits:
                message = f"the limits of tenant {tenant!r} are those of the configuration"
                raise ApiError(404, message, code="limits_not_changed", param="tenant")
            is_told = await self._changes.reset_limits(operator_of(request), tenant)
        return json_response(self._told(tenant) | _others(is_told))

    # -- inside ----------------------------------------------------------------------------------------

    def _told(self, tenant: str) -> dict[str, Any]:
        configured, now = self._tenants.configured_limits(tenant), self._clock()
        changed = self._tenants.limits_are_changed(tenant)
        return {
            "tenant": tenant,
            "configured": configured is not None,
            "limits": written(self._gateway.limiter.limits(tenant)),
            "limits_from": "operator" if changed else "configuration" if configured is not None else "others",
            "configured_limits": None if configured is None else written(configured),
            "used": self._gateway.limiter.used(tenant, self._gateway.clock()),
            "keys": [_told_key(one, now) for one in self._tenants.keys(tenant)],
        }

    def _good(self, tenant: str, now: float) -> list[TenantKey]:
        return [one for one in self._tenants.keys(tenant) if one.key.is_good(now)]

    def _check_room(self, tenant: str, now: float) -> None:
        self._check_tenants(tenant)
        good = self._good(tenant, now)
        if len(good) >= MOST_KEYS:
            names = ", ".join(one.key.id for one in good)
            message = (
                f"tenant {tenant!r} has {len(good)} good keys ({names}): one, and one to take its place, is what there "
                "may be; revoke the old one first"
            )
            raise ApiError(409, message, code="too_many_keys")

    def _check_tenants(self, tenant: str) -> None:
        names = self._tenants.names()
        if tenant not in names and len(names) >= MOST_TENANTS:
            raise ApiError(409, f"there are {len(names)} tenants already", code="too_many_tenants")

    def _check(self, request: Request) -> None:
        self._keys.check_admin(headers_of(request.headers.raw))

    def _named(self, request: Request) -> str:
        name: str = request.path_params["tenant"]
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            message = f"tenant: a name has 1 to {LONGEST_NAME} characters that can be shown"
            raise ApiError(400, message, param="tenant")
        return name


def _others(is_told: bool | None) -> dict[str, Any]:
    """For an answer, where there are other gateways: whether they can know, or will once Redis is back."""
    return {} if is_told is None else {"others_told": is_told}


def _told_key(one: TenantKey, now: float) -> dict[str, Any]:
    key = one.key
    source = "configuration" if one.configured else "operator"
    return {"id": key.id, "expires": key.expires, "good": key.is_good(now), "from": source}


async def _read(request: Request, kind: type[Asked]) -> Asked:
    """The request's JSON object; nothing at all is an empty one. Raises ApiError."""
    body = await read_body(request.receive, headers_of(request.headers.raw), _LONGEST_BODY)
    return decode(body if body.strip() else b"{}", kind)


def _expiry(value: str | None, now: float) -> float | None:
    """Epoch seconds of a day's end or of a moment. Raises ApiError for what is neither, or past."""
    if value is None:
        return None
    moment = _moment(value)
    if moment is None:
        message = (
            "expires: must be a day such as 2027-01-31 or a moment such as 2027-01-31T12:00:00Z, or null"
        )
        raise ApiError(400, message, param="expires")
    if not now < moment <= now + _LONGEST_LIFE:
        raise ApiError(400, "expires: must be in the future, and not in more than 100 years", param="expires")
    return moment


def _moment(value: str) -> float | None:
    try:
        if _DAY.fullmatch(value):
            return (datetime.fromisoformat(value).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()
        at = datetime.fromisoformat(value)
        moment = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return moment if math.isfinite(moment) else None
