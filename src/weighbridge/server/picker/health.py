"""gRPC's own health checks, as the proposal wants them answered: whether we live, and whether we know the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError

from weighbridge.server.picker.http2 import CallFailed, GrpcCall, GrpcStatus, Handle
from weighbridge.server.picker.messages import (
    NOT_SERVING,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)
from weighbridge.server.picker.words import SERVICE

HEALTH = "grpc.health.v1.Health"

#: Seconds between two looks at whether those who watch are to be told something else.
LOOK_EVERY = 0.5
_ALIVE = frozenset({"", "liveness"})
_READY = frozenset({"readiness", SERVICE})


class Health:
    """`ready` is asked each time."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def handlers(self) -> dict[str, Handle]:
        """Who serves which path."""
        return {f"/{HEALTH}/Check": self.check, f"/{HEALTH}/Watch": self.watch}

    async def check(self, call: GrpcCall) -> None:
        """Say once how it is. Raises CallFailed for a service that is not here."""
        service = await _asked(call)
        state = self._state(service)
        if state == SERVICE_UNKNOWN:
            raise CallFailed(GrpcStatus.NOT_FOUND, f"there is no service {service!r} here")
        await call.write(HealthCheckResponse(status=state).SerializeToString())

    async def watch(self, call: GrpcCall) -> None:
        """Say how it is, and again whenever that is another."""
        service, told = await _asked(call), None
        while True:
            state = self._state(service)
            if state != told:
                told = state
                await call.write(HealthCheckResponse(status=state).SerializeToString())
            await asyncio.sleep(LOOK_EVERY)

    def _state(self, service: str) -> int:
        if service in _ALIVE:
            return SERVING
        if service not in _READY:
            return SERVICE_UNKNOWN
        return SERVING if self._ready() else NOT_SERVING


async def _asked(call: GrpcCall) -> str:
    """The service that is asked for."""
    try:
        return str(HealthCheckRequest.FromString(await call.read() or b"").service)
    except DecodeError:
        raise CallFailed(GrpcStatus.INTERNAL, "a message cannot be read") from None
