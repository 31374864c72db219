"""What a table of endpoints is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.engine.api import Turn
from weighbridge.engine.text import TokenDecoder
from weighbridge.errors import BadInput
from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.models.text.encoding.library import TextPairs
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.server.elsewhere.store import StreamStore
from weighbridge.server.tracing.tracer import Tracer
from weighbridge.server.watching.view import ServiceView
from weighbridge.wire.identity.access import AccessSettings
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.journey import Service
from weighbridge.wire.prompts.care import PromptCare
from weighbridge.wire.protocol import WireProtocol

Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    return json_bytes(msgspec.json.encode(value), status)


def json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


class Audience(StrEnum):
    """Whom an endpoint answers."""

    TENANTS = "tenants"  # whoever has a key, where keys are asked for
    VISITORS = "visitors"  # tenants, the operator, this machine, and everybody where pages are open
    WATCHERS = "watchers"  # of those, the ones who may see what others do: not any tenant
    OPERATOR = "operator"  # with keys on, whoever has the operator's own
    ALL = "all"  # everybody; or the handler asks for a key of its own


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table."""

    method: str
    path: str
    handler: Handler
    audience: Audience = Audience.TENANTS
    speaks: WireProtocol | None = None  # whose errors it answers with; None: OpenAI's


class ChatTokenizer(Protocol):
    """What the server needs of a tokenizer."""

    vocab_size: int
    encodes_apart: bool  # by a process of its own: not on the event loop, however short a text is

    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]: ...
    @property
    def pairs(self) -> TextPairs | None:
        """What encodes for a model that reads texts whole; None where nothing is read."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_text(self, token: int, /) -> str: ...
    def token_bytes(self, token: int, /) -> bytes: ...
    def is_special(self, token: int, /) -> bool:
        """Whether it is a control token, which has no text of its own."""
        ...

    def stream(self, *, continuing: bool = False, shown: frozenset[int] = frozenset()) -> TokenDecoder: ...
    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        *,
        most: int | None = None,
    ) -> list[int]: ...
    def specials_named(self, names: Iterable[str]) -> frozenset[int]:
        """The ids of the control tokens among these texts."""
        ...

    @property
    def supports_tools(self) -> bool: ...
    @property
    def shows_tools(self) -> bool:
        """Whether a chat with tools can be written down, if only in words."""
        ...

    @property
    def template_text(self) -> str:
        """The chat template as it is written; empty where there is none."""
        ...


class NoTokenizer(BadInput):
    """This process has no tokenizer of a model."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class HttpService(Service, Protocol):
    """A service that answers over HTTP: one engine, or a gateway. The door serves the same endpoints over both."""

    callers: Callers
    prompts: PromptCare
    usage: UsageKeeper

    @property
    def access(self) -> AccessSettings: ...
    @property
    def keeping(self) -> KeepSettings:
        """How long what was answered is kept, and where."""
        ...

    max_body: int  # bytes
    stream_store: StreamStore | None
    """Where streams are kept that other gateways can go on with; None: each is its own server's."""

    tracer: Tracer | None  # what traces its requests; None: nothing does

    @property
    def seen(self) -> ServiceView:
        """What the console shows beside the load."""
        ...

    async def start(self) -> None:
        """Begin to work; called on the event loop that serves."""
        ...

    async def stop(self) -> None: ...

    def models(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`."""
        ...

    def model(self, name: str) -> dict[str, Any]:
        """One of them. Raises UnknownModel."""
        ...

    def health(self) -> tuple[int, dict[str, Any]]:
        """The status of `/health`, and what it says beside the version: `status` in words first."""
        ...

    def load(self, in_full: bool) -> dict[str, Any]:
        """What `/v1/load` answers. Not `in_full`: how busy it is, without names, addresses and money."""
        ...

    async def exposition(self) -> bytes:
        """What `/metrics` answers."""
        ...

    def tokenizer(self, model: str) -> tuple[ChatTokenizer, int | None]:
        """A model's tokenizer and its context in tokens. Raises NoTokenizer where there is none here."""
        ...

    async def asked_behind(self, path: str, model: str, fields: Mapping[str, Any]) -> bytes:
        """What a server behind this one answers at `/tokenize` or `/detokenize`. Raises NoTokenizer where none can."""
        ...

    @property
    def draining(self) -> bool:
        """Whether it takes no new requests, because it ends."""
        ...

    def spare_room(self, model: str) -> SpareRoom:
        """How many requests of the last class may be under way for a model now. Raises UnknownModel."""
        ...

    async def touch(self, model: str, keep_alive: float | None) -> None:
        """Have a model in memory though nothing is asked of it, for `keep_alive` seconds behind its last one; 0: let
        it go. Nothing happens where models stay loaded. Raises Refused."""
        ...

    def keeps_streams(self, model: str) -> bool:
        """Whether a model is configured so that its streams survive their clients."""
        ...

    def may_write(self, model: str, restricted: bool) -> bool:
        """Whether requests for a model may be written down before anybody has looked into them. `restricted`: they say
        themselves how they are to be treated."""
        ...

    def answered(self, path: str, status: int) -> None:
        """Hear of every answer, for the metrics."""
        ...

    def stalled(self, thread: str, seconds: float) -> None:
        """Hear how long a thread kept everybody waiting, for the metrics."""
        ...

    def watched(self) -> Mapping[str, Callable[[], Turn | None]]:
        """The threads beside the event loop that are to be watched, by name, and what each is at."""
        ...

    def endpoints(self) -> Sequence[Endpoint]:
        """What this service has beside the common endpoints."""
        ...
