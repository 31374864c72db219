"""What every adapter shares: how a replica fails, how long it may take, and whole SSE events out of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from weighbridge.errors import Inside, WeighbridgeError


class Failure(StrEnum):
    """How a call to a replica went wrong. The word is a metric's label."""

    CONNECT = "connect"  # no connection: refused, unreachable, no such host
    STALE = "stale"  # a kept connection was closed under our request; nothing came back
    FIRST_BYTE = "first_byte_timeout"
    IDLE = "idle_timeout"
    BROKEN = "broken"  # the connection ended in the middle of an answer
    STATUS = "status"  # an answer with an error status
    PROBE = "probe"  # asked for its health, it gave none


#: The same for those who are not told where a replica is and what it says.
_PLAIN = {
    Failure.CONNECT: "is out of reach",
    Failure.STALE: "closed the connection without an answer",
    Failure.FIRST_BYTE: "took too long to begin its answer",
    Failure.IDLE: "fell silent in its answer",
    Failure.BROKEN: "broke off, or sent no answer that can be read",
    Failure.STATUS: "answered with an error",
    Failure.PROBE: "does not tell how it is",
}


class ReplicaError(WeighbridgeError):
    """A replica that cannot be reached, takes too long, or breaks off."""

    def __init__(self, replica: str, kind: Failure, message: str) -> None:
        super().__init__(Inside(f"replica {replica!r}: {message}", f"replica {replica!r}: {_PLAIN[kind]}"))
        self.replica = replica
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds a replica may take: to connect, to the first event of a stream, to a whole answer, between two chunks
    behind the first event, and to answer a probe."""

    connect: float = 2.0
    first_byte: float = 120.0
    answer: float = 900.0
    idle: float = 60.0
    probe: float = 2.0


def has_content(chunk: bytes) -> bool:
    """Whether there is more in it than comments that keep the line open."""
    return b"data:" in chunk or b"{" in chunk


@dataclass(slots=True)
class BytesAnswer:
    """An `Answer` that is already here: the body of an error, or of a replica inside this process."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body

    async def close(self) -> None:
        """Do nothing: nothing is held."""
