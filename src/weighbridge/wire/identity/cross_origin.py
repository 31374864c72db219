"""Scripts of other sites (CORS): which may call from a browser, and what they may read of an answer."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from weighbridge.wire.identity.access import ANY_ORIGIN, AccessSettings, origin_allowed

#: Headers of an answer that scripts of other sites may read.
EXPOSED_HEADERS = [
    "retry-after",
    "x-request-id",
    "request-id",
    *(
        f"x-ratelimit-{what}-{kind}"
        for what in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    ),
    *(f"x-weighbridge-{name}" for name in ("ticket", "replica", "placement", "cost", "degraded", "stream")),
]


class Sites(CORSMiddleware):
    """Lets sites of this machine's call, and those that are allowed by name. All else passes untouched."""

    def __init__(self, app: ASGIApp, access: AccessSettings) -> None:
        everybody = [ANY_ORIGIN] if ANY_ORIGIN in access.allow_origins else []
        super().__init__(
            app,
            allow_origins=everybody,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = [value for name, value in scope.get("headers", ()) if name == b"origin"]
        if len(origins) == 1 and self.is_allowed_origin(origins[0].decode("latin-1")):
            await super().__call__(scope, receive, send)
        else:  # a browser keeps an answer that says nothing of its site from its scripts
            await self.app(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        return origin_allowed(self._access, origin)
