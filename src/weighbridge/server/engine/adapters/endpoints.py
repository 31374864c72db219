"""Adapters come and go while a server runs: `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.engine.api import Engine
from weighbridge.server.endpoint import Audience, Endpoint, json_response
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of

#: Seconds that requests are waited for, unless told otherwise, and at the most.
WAIT, LONGEST_WAIT = 30.0, 3600.0

_Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class LoadAdapterRequest(Struct):
    """`lora_path`: a directory below that of `--lora-root`."""

    lora_name: _Text
    lora_path: _Text


class UnloadAdapterRequest(Struct):
    lora_name: _Text


class AdapterEndpoints:
    def __init__(self, engine: Engine, max_body: int) -> None:
        self._engine, self._max_body = engine, max_body

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", "/v1/load_lora_adapter", self.load, Audience.OPERATOR),
            Endpoint("POST", "/v1/unload_lora_adapter", self.unload, Audience.OPERATOR),
        ]

    async def load(self, request: Request) -> Response:
        asked = decode(await self._body(request), LoadAdapterRequest)
        adapter = await self._engine.load_adapter(asked.lora_name, asked.lora_path)
        return json_response(
            {"id": adapter.name, "object": "adapter", "root": adapter.root, "rank": adapter.rank}
        )

    async def unload(self, request: Request) -> Response:
        """Waits for the requests that use it, at most `timeout` seconds (30)."""
        asked = decode(await self._body(request), UnloadAdapterRequest)
        await self._engine.unload_adapter(asked.lora_name, _timeout(request))
        return json_response({"id": asked.lora_name, "object": "adapter", "deleted": True})

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.receive, headers_of(request.headers.raw), self._max_body)


def _timeout(request: Request) -> float:
    given = request.query_params.get("timeout", str(WAIT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds <= LONGEST_WAIT:
        raise ApiError(400, f"timeout: must be 0 to {LONGEST_WAIT:.0f} seconds", param="timeout")
    return seconds
