"""A request in a distributed trace, while it is served: its own span, and the calls that were made for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from weighbridge.ticket.record import Ticket
from weighbridge.ticket.span import TRACE_HEADERS, SpanName

#: The span of the request that this task works on, for log lines.
current: ContextVar[SpanName | None] = ContextVar("current_span", default=None)

#: Calls of one request that are kept: a stream may be continued again and again.
MOST_CALLS = 64


@dataclass(frozen=True, slots=True)
class Callee:
    """Whom a call goes to. `provider`: as the conventions for generative AI name whose form the call has."""

    replica: str
    provider: str
    address: str = ""
    port: int | None = None


@dataclass(slots=True, eq=False)
class SentCall:
    """A call to a replica: one try, or a second copy. Times are seconds since the epoch."""

    span: SpanName
    to: Callee
    model: str  # as that server is asked for it
    number: int  # of the try, from 1
    began: float
    first: float | None = None  # the first content
    ended: float | None = None
    status: int | None = None  # HTTP's
    error: str = ""  # what kind of failure, in one word

    def end(self, now: float, error: str = "") -> None:
        """Note when it ended, once: what comes first counts."""
        if self.ended is None:
            self.ended, self.error = now, error


@dataclass(slots=True, eq=False)
class Trace:
    """A request's own span and what belongs to it. `path`: what is to be computed, as in `Ask`."""

    span: SpanName
    began: float  # seconds since the epoch
    path: str = ""
    streams: bool = False
    tickets: list[Ticket] = field(default_factory=list)  # one, but for several prompts in one request
    calls: list[SentCall] = field(default_factory=list)

    def call(self, to: Callee, model: str, number: int, now: float) -> SentCall:
        """A call that is about to be made, whose span is below this one."""
        made = SentCall(self.span.child(), to, model, number, now)
        if self.span.sampled and len(self.calls) < MOST_CALLS:
            self.calls.append(made)
        return made

    def part(self) -> Trace:
        """A part of the request, such as a leg, in the trace: a span below this one, whose calls are kept here."""
        return Trace(self.span.child(), self.began, self.path, self.streams, calls=self.calls)

    def holds(self, ticket: Ticket) -> None:
        """Take note of the ticket of this request, or of one of its prompts."""
        ticket.trace = self.span
        self.tickets.append(ticket)


def named(call: SentCall, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a call with its span in place of the client's."""
    own = call.span.headers()
    return {name: value for name, value in headers.items() if name not in TRACE_HEADERS} | own
