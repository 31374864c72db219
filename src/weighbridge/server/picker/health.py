"""gRPC's own health checks, as the proposal wants them answered: whether we live, and whether we know the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

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

    def handlers(self) -> Any:
        """What a gRPC server serves of it."""
        as_bytes = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, **as_bytes),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **as_bytes),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    async def check(self, request: Any, context: Any) -> Any:
        state = self._state(request.service)
        if state == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return HealthCheckResponse(status=state)

    async def watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        told = None
        while True:
            state = self._state(request.service)
            if state != told:
                told = state
                yield HealthCheckResponse(status=state)
            await asyncio.sleep(LOOK_EVERY)

    def _state(self, service: str) -> int:
        if service in _ALIVE:
            return SERVING
        if service not in _READY:
            return SERVICE_UNKNOWN
        return SERVING if self._ready() else NOT_SERVING
