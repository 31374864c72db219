"""Envoy's side of the conversation with a picker, written by hand: each message is sent when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.fleet.backends import Backend, all_served, check_drained, config_of, until
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.config import parse_configuration
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.picker.door import PickerDoor
from weighbridge.server.picker.endpoints import Endpoints
from weighbridge.server.picker.listening import PickerServer
from weighbridge.server.picker.messages import (
    BUFFERED,
    DUPLEX,
    NONE,
    HeaderValue,
    ProcessingRequest,
    ProcessingResponse,
)

CHATS = "/v1/chat/completions"
KEY = "x-gateway-destination-endpoint"


def chat(**fields: Any) -> bytes:
    fields.setdefault("messages", [{"role": "user", "content": "What does it weigh?"}])
    return json.dumps({"model": "m", **fields}).encode()


@dataclass(frozen=True)
class Picked:
    """What a picker said of a request: where it goes, by header and by metadata, and what is sent."""

    header: str
    metadata: str
    headers: dict[str, str]
    removed: list[str]
    pieces: list[bytes]

    @property
    def endpoints(self) -> list[str]:
        assert self.header == self.metadata
        return self.header.split(",")

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(b"".join(self.pieces))
        return found


@dataclass(frozen=True)
class Refusal:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


class Talk:
    """One request. `ask` sends it, `decision` is what the picker says; `answer` brings what a replica said."""

    def __init__(self, channel: Any, mode: int = DUPLEX, answer_mode: int = DUPLEX) -> None:
        self._mode, self._answer_mode = mode, answer_mode
        self.call = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )()

    async def ask(
        self,
        body: bytes,
        path: str = CHATS,
        *,
        headers: dict[str, str] | None = None,
        subset: Sequence[str] | None = None,
        pieces: int = 1,
        method: str = "POST",
        says_modes: bool = True,
        trailers: bool = False,
    ) -> None:
        message = ProcessingRequest()
        sent = {":method": method, ":path": path, ":authority": "models", **(headers or {})}
        _fill(message.request_headers.headers, sent)
        message.request_headers.end_of_stream = not body
        if subset is not None:
            hint = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
            hint.get_or_create_list(f"{KEY}-subset").extend(list(subset))
        if says_modes:
            message.protocol_config.request_body_mode = self._mode
            message.protocol_config.response_body_mode = self._answer_mode
        await self.call.write(message)
        if not body or self._mode == NONE:
            return
        if self._mode == BUFFERED:
            said = await self.call.read()
            assert said.WhichOneof("response") == "request_headers"
        size = -(-len(body) // pieces)
        for at in range(0, len(body), size):
            message = ProcessingRequest()
            message.request_body.body = body[at : at + size]
            message.request_body.end_of_stream = at + size >= len(body) and not trailers
            await self.call.write(message)
        if trailers:
            message = ProcessingRequest()
            message.request_trailers.SetInParent()
            await self.call.write(message)

    async def decision(self, *, with_body: bool = True, trailers: bool = False) -> Picked | Refusal:
        said = await self.call.read()
        if said.WhichOneof("response") == "immediate_response":
            now = said.immediate_response
            return Refusal(now.status.code, _headers(now.headers), json.loads(now.body))
        kind = said.WhichOneof("response")
        assert kind == ("request_body" if self._mode == BUFFERED else "request_headers")
        common = getattr(said, kind).response
        headers = _headers(common.header_mutation)
        pieces = [common.body_mutation.body] if self._mode == BUFFERED else []
        ended = self._mode != DUPLEX or not with_body
        while not ended:
            more = await self.call.read()
            piece = more.request_body.response.body_mutation.streamed_response
            pieces.append(piece.body)
            ended = piece.end_of_stream or (trailers and len(pieces) > 0)
        if trailers:
            more = await self.call.read()
            assert more.WhichOneof("response") == "request_trailers"
        told = said.dynamic_metadata.fields["envoy.lb"].struct_value.fields[KEY].string_value
        return Picked(headers.pop(KEY), told, headers, list(common.header_mutation.remove_headers), pieces)

    async def picked(self, **options: Any) -> Picked:
        found = await self.decision(**options)
        assert isinstance(found, Picked), found
        return found

    async def refused(self) -> Refusal:
        found = await self.decision()
        assert isinstance(found, Refusal), found
        return found

    async def begin_answer(
        self, status: int = 200, kind: str = "text/event-stream", *, served: str = "", ends: bool = False
    ) -> dict[str, str]:
        """Bring the head of an answer; return the headers of the picker's own."""
        message = ProcessingRequest()
        _fill(message.response_headers.headers, {":status": str(status), "content-type": kind})
        message.response_headers.end_of_stream = ends
        if served:
            message.metadata_context.filter_metadata["envoy.lb"][f"{KEY}-served"] = served
        await self.call.write(message)
        said = await self.call.read()
        assert said.WhichOneof("response") == "response_headers"
        return _headers(said.response_headers.response.header_mutation)

    async def more_answer(self, body: bytes, *, ends: bool = False) -> None:
        """Bring a piece of its body, which must go by as it is."""
        message = ProcessingRequest()
        message.response_body.body, message.response_body.end_of_stream = body, ends
        await self.call.write(message)
        said = await self.call.read()
        assert said.WhichOneof("response") == "response_body"
        mutation = said.response_body.response.body_mutation
        if self._answer_mode == DUPLEX:
            assert mutation.streamed_response.body == body
            assert mutation.streamed_response.end_of_stream is ends
        else:
            assert mutation.WhichOneof("mutation") is None

    async def stream(self, tokens: int = 3, *, served: str = "") -> dict[str, str]:
        """Bring a whole streamed answer with its usage."""
        head = await self.begin_answer(served=served)
        for event in events(tokens):
            await self.more_answer(event)
        await self.more_answer(b"data: [DONE]\n\n", ends=True)
        return head

    async def end(self) -> None:
        """Wait until the picker has ended the conversation."""
        assert await self.call.read() is grpc.aio.EOF

    def hang_up(self) -> None:
        self.call.cancel()


def events(tokens: int) -> list[bytes]:
    """A stream's events before its last, with usage."""
    found = [{"choices": [{"index": 0, "delta": {"content": f" t{n}"}}]} for n in range(tokens)]
    found.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    found.append({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": tokens}})
    return [b"data: " + json.dumps(one).encode() + b"\n\n" for one in found]


def _fill(headers: Any, values: dict[str, str]) -> None:
    headers.headers.extend(HeaderValue(key=name, raw_value=value.encode()) for name, value in values.items())


def _headers(mutation: Any) -> dict[str, str]:
    return {one.header.key: one.header.raw_value.decode() for one in mutation.set_headers}


@dataclass
class Picking:
    """A picker on a socket, and its gateway."""

    gateway: Gateway
    server: PickerServer
    channel: Any

    def talk(self, mode: int = DUPLEX, answer_mode: int = DUPLEX) -> Talk:
        return Talk(self.channel, mode, answer_mode)

    def ticket(self, head: dict[str, str]) -> Any:
        return self.gateway.tickets.get(head["x-weighbridge-ticket"])

    def requests(self) -> dict[str, int]:
        pool = self.gateway.pools["m"]
        return {name: member.state.requests for name, member in pool.members.items()}


def endpoint(backend: Backend) -> str:
    return backend.url.removeprefix("http://")


@asynccontextmanager
async def picking(
    *backends: Backend,
    model: str = "",
    top: str = "",
    replica: str = "",
    fallbacks: int = 2,
    wait: bool = True,
    served: bool = False,
    certificate: tuple[Path, Path] | None = None,
) -> AsyncIterator[Picking]:
    """Backends and a picker over them; every counter must be at zero when the block ends. `served`: the backends are
    served already, and end when they like."""
    async with nullcontext() if served else all_served(backends):
        text = config_of(list(backends), model, top, replica)
        spec = parse_configuration(text, "weighbridge.yaml", Path(".")).fleet
        gateway = Gateway(spec, build_replica, seed=1)
        service = GatewayService(gateway, GatewayMetrics(gateway))
        door = PickerDoor(service, Endpoints(gateway, fallbacks))
        server = PickerServer(door, "127.0.0.1", 0, max_body=spec.max_body, certificate=certificate)
        await service.start()
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await until(lambda: door.ready and (gateway.ready or not wait))
                yield Picking(gateway, server, channel)
                await until(lambda: not gateway.open_journeys)
                check_drained(gateway)
        finally:
            await server.close()
            await service.stop()


async def brief(seconds: float = 0.05) -> None:
    """Let whatever would happen happen."""
    await asyncio.sleep(seconds)
