"""The seam between a door and whatever answers behind it: an engine, a fleet, a route over fleets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from weighbridge.errors import WeighbridgeError
from weighbridge.ticket import Ticket, TicketStore
from weighbridge.wire.ask import Ask
from weighbridge.wire.events import Event, Parse

HeaderList = list[tuple[bytes, bytes]]


class Opened(Protocol):
    """An answer that has begun: its status and first content are here. `is_stream`: it comes as events."""

    @property
    def status(self) -> int: ...
    @property
    def is_stream(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer in one piece. `parse` belongs to the protocol that `body` is in."""

    body: bytes
    parse: Parse
    status: int = 200
    content_type: str = "application/json"


class Answered(WeighbridgeError):
    """An error that a server behind us answered with; it goes to the client as it is."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"a replica answered with status {status}")
        self.status = status
        self.body = body
        self.headers = headers


class Journey(Protocol):
    """One request on its way. `open` until the first content, then `stream` or `whole`; `close` is the one way out."""

    @property
    def ticket(self) -> Ticket: ...

    async def open(self) -> Opened:
        """Wait for the first content. Raises Refused, BadInput or Answered where there is none."""
        ...

    def headers(self) -> HeaderList:
        """What the client is told beside the answer: ticket, replica, placement, cost.

        Asked when a stream begins, or when `whole` has come back: then the cost is the true one.
        """
        ...

    def stream(self) -> AsyncIterator[Event]:
        """The events of the answer. A failure after the first one is an event too, the last."""
        ...

    async def whole(self) -> WholeAnswer: ...

    async def close(self, error: str | None = None) -> bool:
        """Cancel what still runs and settle everything. False when that was done before."""
        ...


class Service(Protocol):
    """What a door stands in front of."""

    @property
    def tickets(self) -> TicketStore: ...

    async def admit(self, ask: Ask) -> Journey:
        """Accept a request, or raise Refused or BadInput. The caller closes the journey."""
        ...

    def limit_headers(self, tenant: str) -> HeaderList:
        """What answers say of a tenant's limits; nothing where it has none."""
        ...


class RouteLike(Protocol):
    """What a gateway has for a name of its own beside its models; it closes it when it ends."""

    @property
    def counted_as(self) -> str:
        """The model whose tokens are those of a prompt."""
        ...

    def may_write(self, restricted: bool) -> bool:
        """Whether what is asked of it may be written down, as far as is known before it is asked. `restricted`: the
        request says itself how it is to be treated."""
        ...

    async def admit(self, ask: Ask) -> Journey: ...
    async def close(self) -> None: ...
    def health(self) -> dict[str, bool]:
        """Its places, and whether each can be asked now."""
        ...

    def told(self) -> dict[str, Any]:
        """Its places and bounds, as plain JSON for people who look at it."""
        ...
