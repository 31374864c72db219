"""What an answer consists of, in nobody's protocol.

An event keeps the bytes it came in and is parsed only when somebody asks, so that a relay between two sides of the
same protocol passes bytes through and pays for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.cost.usage import Usage


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of one choice, behind what came before. `logprobs`: of its tokens as OpenAI writes them, where asked for."""

    text: str
    choice: int = 0
    logprobs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Text that a model thinks aloud before it answers."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class RefusalPart:
    """Text in which a model declines to answer."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a tool call: `id` and `name` come with its first piece, `arguments` is JSON text in pieces."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class FinishPart:
    """A choice has ended: "stop", "length", "tool_calls", or whatever else the model's server says. `stopped_by`: the
    client's own string that ended it, where the server tells."""

    reason: str
    choice: int = 0
    stopped_by: str = ""


@dataclass(frozen=True, slots=True)
class UsagePart:
    """What the request took, as the side that answers counts it."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class ErrorPart:
    """The answer ends here with an error."""

    message: str
    code: str | None = None
    kind: str = "server_error"


Part = TextPart | ReasoningPart | RefusalPart | ToolCallPart | FinishPart | UsagePart | ErrorPart

#: Reads the parts out of bytes of one protocol. It doubles as the mark of that protocol on an event.
Parse = Callable[[bytes], Sequence[Part]]


class Event:
    """A piece of a streamed answer as it came: one server-sent event, or several that came together.

    `parse` belongs to the protocol that `raw` is in; `last` says that nothing follows.
    """

    __slots__ = ("_parts", "last", "parse", "raw")

    def __init__(self, raw: bytes, parse: Parse, last: bool = False) -> None:
        self.raw = raw
        self.parse = parse
        self.last = last
        self._parts: Sequence[Part] | None = None

    @property
    def parts(self) -> Sequence[Part]:
        """What the event says, parsed at the first look."""
        if self._parts is None:
            self._parts = self.parse(self.raw)
        return self._parts
