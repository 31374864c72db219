"""What a protocol is: one module that turns its requests into `Ask` and the common events into its own bytes.

Everything behind a door is the same for every protocol. To add one, write a module with a `WireProtocol` and put it
into the door's table; nothing else has to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import Message, Receive
from weighbridge.wire.errors import ApiError, error_body
from weighbridge.wire.events import Event
from weighbridge.wire.journey import WholeAnswer

#: Writes an answer to a client; returns the status.
AnswerWriter = Callable[[Receive, Callable[[Message], Awaitable[None]]], Awaitable[int]]

EVENT_STREAM = "text/event-stream; charset=utf-8"


class Encoder(ABC):
    """Writes one answer. An encoder belongs to one request; what a stream must remember is kept here."""

    stream_type = EVENT_STREAM
    #: Whether a stream is one body to the client, written when it has ended; what came when is known then.
    gathers = False
    #: What keeps a silent stream open; empty where the protocol has nothing that readers skip.
    keep_alive = b": keep-alive\n\n"

    def begin(self, ticket: Ticket) -> None:  # noqa: B027
        """Hear of the request's ticket before the first event or the whole answer, where a protocol tells of weights
        and times."""

    @abstractmethod
    def event(self, event: Event) -> bytes:
        """The bytes of an event in this protocol, and behind the last one what ends a stream; empty when it has nothing
        to show."""

    @abstractmethod
    def end(self) -> bytes:
        """What follows the last event, where the event itself did not say so."""

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """An error inside a stream that has begun; nothing follows it."""

    @abstractmethod
    def whole(self, answer: WholeAnswer) -> bytes:
        """The body of an answer in one piece."""

    def late(self, answer: WholeAnswer) -> bytes:
        """An answer in one piece inside a stream that was kept open, and what ends the stream."""
        return b"data: " + self.whole(answer).replace(b"\n", b" ") + b"\n\n"


class WireProtocol(ABC):
    """One way for clients to ask. `path` is its endpoint."""

    name: str
    path: str
    #: Headers that name the request in an answer.
    id_headers: tuple[bytes, ...] = (b"x-request-id",)
    #: Whether another server's error body goes to the client as it came: it is in OpenAI's shape.
    passes_errors = True

    @abstractmethod
    def read(self, body: bytes) -> Ask:
        """What a body asks, without who asks. Raises ApiError 400 naming the field that is wrong."""

    async def recall(self, ask: Ask, owner: str | None) -> None:  # noqa: B027
        """Add to an ask what the server remembers. `owner`: the tenant that is known to call; None: nobody need be.

        Raises ApiError for what is asked for and is not there.
        """

    async def detach(self, ask: Ask) -> AnswerWriter | None:
        """Begin an answer that outlives its connection, and return what tells the client of it; None: it is written
        like any other. Raises what `Service.admit` does."""
        return None

    async def close(self) -> None:  # noqa: B027
        """Let go of all that is kept; called when the server ends."""

    @abstractmethod
    def encoder(self, ask: Ask) -> Encoder:
        """The writer of the answer to `ask`."""

    def error(self, error: ApiError, request: str = "") -> bytes:
        """The body of an error answer: OpenAI's shape, unless the protocol has another. `request`: the ticket's id,
        where there is one."""
        return error_body(error)

    def status(self, error: ApiError) -> int:
        """The HTTP status of an error, where the protocol has another word for one of ours."""
        return error.status
