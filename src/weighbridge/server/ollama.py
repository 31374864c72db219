"""Ollama's endpoints beside its chats: which models there are, what they are, and bringing one here.

A server's models are set where it is started: what would make, copy or delete one is refused. They stay loaded, but for
those of a gateway that are loaded on demand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from weighbridge import __version__
from weighbridge.errors import UnknownModel, WeighbridgeError
from weighbridge.models.catalogue.entries import CATALOGUE, CatalogueEntry, find
from weighbridge.models.catalogue.store import pull
from weighbridge.server.endpoint import (
    Audience,
    Endpoint,
    HttpService,
    NoTokenizer,
    json_response,
)
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError, as_api_error
from weighbridge.wire.headers import headers_of
from weighbridge.wire.protocols.ollama import NDJSON, NamedModel, OllamaChat, error_line, stamp

#: The version of Ollama whose API this is: clients look whether it is new enough for what they use.
API_VERSION = "0.13.0"
#: When models that stay loaded are unloaded: far enough for any client, and a date to all of them.
NEVER = 4_102_444_800.0  # 2100-01-01
#: Seconds between two lines about a download.
PULSE = 0.25

_encode = msgspec.json.encode
_OLLAMA = OllamaChat()


class OllamaEndpoints:
    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._pulling = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        found = [
            Endpoint("GET", "/api/version", self.version, Audience.ALL, _OLLAMA),
            Endpoint("GET", "/api/tags", self.tags, speaks=_OLLAMA),
            Endpoint("GET", "/api/ps", self.loaded, speaks=_OLLAMA),
            Endpoint("POST", "/api/show", self.show, speaks=_OLLAMA),
            Endpoint("POST", "/api/pull", self.pull, Audience.VISITORS, _OLLAMA),
        ]
        refused = (("POST", "create"), ("POST", "copy"), ("POST", "push"), ("DELETE", "delete"))
        return found + [
            Endpoint(method, f"/api/{word}", self.fixed, speaks=_OLLAMA) for method, word in refused
        ]

    async def version(self, request: Request) -> Response:
        return json_response({"version": API_VERSION, "weighbridge": __version__})

    async def tags(self, request: Request) -> Response:
        return json_response({"models": [_tag(model) for model in self._service.models()]})

    async def loaded(self, request: Request) -> Response:
        models = [_loaded(model, time.time()) for model in self._service.models() if _is_loaded(model)]
        return json_response({"models": models})

    async def show(self, request: Request) -> Response:
        model = self._service.model((await self._named(request)).wanted)
        family = "weighbridge"  # under it clients look for the context
        info: dict[str, Any] = {"general.architecture": family, "general.basename": model["id"]}
        if model.get("max_model_len"):
            info[f"{family}.context_length"] = model["max_model_len"]
        shown = {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "license": "",
            "details": _DETAILS,
            "model_info": info,
            "capabilities": self._capabilities(model["id"]),
            "modified_at": stamp(model["created"]),
        }
        return json_response(shown)

    def _capabilities(self, model: str) -> list[str]:
        """What a model is known to do: whether it calls tools, its template says, where it is here."""
        try:
            calls = self._service.tokenizer(model)[0].supports_tools
        except NoTokenizer:
            calls = False
        return ["completion", "tools"] if calls else ["completion"]

    async def fixed(self, request: Request) -> Response:
        remedy = "models are set where the server is started (`weighbridge serve NAME`, or its configuration)"
        raise ApiError(400, f"{request.url.path}: {remedy}")

    async def pull(self, request: Request) -> Response:
        """Say that a model is here, or bring one of the catalogue into the cache of this machine."""
        named = await self._named(request)
        name = named.wanted
        try:
            self._service.model(name)
            progress = _here()
        except UnknownModel:
            entry = find(name)
            if entry is None:
                known = ", ".join(one.name for one in CATALOGUE)
                raise ApiError(404, f"pull: no model {name!r} in the catalogue, which has {known}") from None
            self._service.callers.check_operator(headers_of(request.headers.raw))
            progress = self._pulled(entry)
        if named.stream is not False:
            return StreamingResponse((line async for line in _lines(progress)), media_type=NDJSON)
        return json_response([one async for one in progress][-1])

    async def _pulled(self, entry: CatalogueEntry) -> AsyncIterator[Mapping[str, Any]]:
        """Bring a file here, one at a time, whole and checked or not at all. Who goes away leaves it going."""
        yield {"status": "pulling manifest"}
        async with self._pulling:
            counted = _Counted()
            task = asyncio.create_task(asyncio.to_thread(pull, entry, counted))
            while not task.done():
                await asyncio.wait((task,), timeout=PULSE)
                yield {
                    "status": counted.said or f"pulling {entry.name}",
                    "digest": f"sha256:{entry.sha256}",
                    **counted.told(),
                }
            try:
                await task
            except WeighbridgeError as error:
                raise ApiError(502, f"pull: {error}", kind="server_error") from error
        yield {"status": f"in the cache of this machine; `weighbridge serve {entry.name}` serves it"}
        yield {"status": "success"}

    async def _named(self, request: Request) -> NamedModel:
        return decode(
            await read_body(request.receive, headers_of(request.headers.raw), self._service.max_body),
            NamedModel,
        )


class _Counted:
    """Hears how a download gets on, on its own thread."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._completed = 0
        self.said = ""

    def start(self, total: int | None) -> None:
        self._total, self._completed = total, 0

    def advance(self, amount: int) -> None:
        self._completed += amount

    def done(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.said = text

    def told(self) -> dict[str, int]:
        return {} if self._total is None else {"total": self._total, "completed": self._completed}


async def _here() -> AsyncIterator[Mapping[str, Any]]:
    yield {"status": "pulling manifest"}
    yield {"status": "success"}


async def _lines(progress: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for one in progress:
            yield _encode(one) + b"\n"
    except WeighbridgeError as error:
        yield error_line(as_api_error(error))


#: What is known of every model behind every door.
_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def _is_loaded(model: Mapping[str, Any]) -> bool:
    """Whether a model is in memory; one that says nothing of it always is."""
    return "status" not in model or model["status"]["value"] == "loaded"


def _loaded(model: Mapping[str, Any], now: float) -> dict[str, Any]:
    """A model in memory, as `ollama ps` shows it."""
    status = model.get("status", {})
    expires = status.get("expires_in_s")
    return {
        **_tag(model),
        "size": status.get("bytes", 0),
        "size_vram": 0,
        "expires_at": stamp(NEVER if expires is None else min(now + expires, NEVER)),
        "context_length": model.get("max_model_len") or 0,
    }


def _tag(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model in a list. The digest names the entry: clients show its beginning and compare it. Its file may be
    elsewhere, so its size is not told."""
    return {
        "name": model["id"],
        "model": model["id"],
        "modified_at": stamp(model["created"]),
        "size": 0,
        "digest": sha256(model["id"].encode()).hexdigest(),
        "details": _DETAILS,
    }
