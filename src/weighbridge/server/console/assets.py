"""The console's own files: read once, served as they are, with a policy that lets a browser run nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.wire.errors import ApiError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}

#: What a page of the console may do: run and show what comes from here, and talk to here. Nothing is written into it as
#: script, style or event; text becomes elements in one place only, which the policy names.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types weighbridge-markdown",
    ]
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # asked again each time: an update of the server is one of its console
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. `mark` names its content, so that a browser need not fetch it again."""

    body: bytes
    media_type: str
    mark: str


@cache
def read_assets() -> Mapping[str, Asset]:
    """The files of the console by name; read once, for those who serve them and those who name them."""
    found: dict[str, Asset] = {}
    for one in files("weighbridge.server.console").joinpath("static").iterdir():
        kind = _TYPES.get(one.name.rpartition(".")[2])
        if kind is not None:
            body = one.read_bytes()
            found[one.name] = Asset(body, kind, f'"{sha256(body).hexdigest()[:32]}"')
    return found


class Assets:
    """Serves them. They hold nothing of anybody's, so that everybody may have them: a page has to be there before its
    reader can say who it is."""

    def __init__(self) -> None:
        self._assets = read_assets()

    async def shell(self, request: Request) -> Response:
        return self._served(request, "index.html")

    async def asset(self, request: Request) -> Response:
        return self._served(request, request.path_params["asset"])

    def _served(self, request: Request, name: str) -> Response:
        asset = self._assets.get(name)
        if asset is None:
            raise ApiError(404, f"the console has no file {name[:100]!r}", code="not_found")
        headers = {**HEADERS, "etag": asset.mark}
        if request.headers.get("if-none-match") == asset.mark:
            return Response(status_code=304, headers=headers)
        return Response(asset.body, headers=headers, media_type=asset.media_type)
