"""One side of a route: a model that answers chats. Everything above knows sides only through this."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import StepCost

Chunk = dict[str, Any]  # one `chat.completion.chunk`, decoded


@dataclass(frozen=True, slots=True)
class SideRequest:
    """A chat to answer. `body` is OpenAI's, without model and stream, which the side sets itself."""

    body: Mapping[str, Any]
    size: int  # bytes of text in the prompt
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 120.0  # seconds for the whole answer
    tenant: str = "default"  # for accounts and queues kept here; never sent to a cloud
    priority: int = 0  # lower runs first, where the side has a queue here
    deadline: float | None = None  # seconds in which the client wants the whole answer


class SideStream(Protocol):
    """The chunks of one answer. Iterate to the end, or `close()` to cancel it."""

    upstream_ticket: str | None

    @property
    def price(self) -> Price:
        """What this answer costs."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...
    async def close(self) -> None: ...


class Side(Protocol):
    """A place that answers. Everything above knows sides only through this."""

    name: str
    model: str
    abilities: frozenset[str] | None
    max_tokens: int  # of an answer, where the client sets no limit

    @property
    def price(self) -> Price:
        """The most that an answer may cost."""
        ...

    @property
    def context_tokens(self) -> int | None: ...
    @property
    def healthy(self) -> bool: ...
    def queue_seconds(self) -> float:
        """Seconds a new request is expected to wait before it is worked on."""
        ...

    def expected_seconds(self, prompt_tokens: int, output_tokens: float) -> float | None:
        """Seconds until an answer is complete, waiting included; None when nothing is known yet."""
        ...

    def estimate_tokens(self, size: int) -> int: ...
    async def open(self, request: SideRequest) -> SideStream:
        """Start an answer. Raises SideFailed before the first chunk."""
        ...

    @property
    def elsewhere(self) -> str:
        """Why its engine may not be asked for the state of a prompt: it is not on this machine. Empty: it may."""
        ...

    async def embeddings(self, request: SideRequest) -> Any:
        """What `/v1/embeddings` answers to a chat, decoded. Raises SideFailed, and where it is elsewhere. It counts
        nothing against the side's health: no answer depends on it."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SideSettings:
    """Where a side is and what is known of it. Times in seconds. `url` empty: a model of the fleet in the same
    process, of which price, speed and time-outs are its replicas'."""

    url: str
    model: str
    price: Price = FREE
    context_tokens: int | None = None
    abilities: frozenset[str] | None = None
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    step_cost: StepCost | None = None  # for engines of our kind: how long its iterations take
    reports_load: bool = False  # whether it answers /v1/load
    connect_timeout: float = 5.0
    first_chunk_timeout: float = 60.0
    idle_timeout: float = 30.0
    max_tokens: int = 1024  # of an answer, where the client sets no limit

    @property
    def shown(self) -> str:
        """The URL for people: without a password that it may hold."""
        return re.sub(r"//[^/@]*@", "//", self.url)


def is_here(url: str) -> bool:
    """Whether a URL is of this machine itself: `localhost`, or a loopback address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
