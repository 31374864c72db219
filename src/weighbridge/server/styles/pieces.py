"""What an answer consists of, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Call number `index` of the answer, so far without arguments."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call number `index`: JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that the model thinks before it answers."""

    text: str


#: A string is text to show.
Piece: TypeAlias = str | Thought | CallBegun | CallArguments


class PieceStream(Protocol):
    """Reads one answer: what is certain now that more of it has come, and what was held back at its end."""

    def push(self, text: str) -> Sequence[Piece]: ...
    def finish(self) -> Sequence[Piece]: ...


def append(pieces: list[Piece], piece: Piece) -> None:
    """At the end, joined with what is of its kind."""
    last = pieces[-1] if pieces else None
    if isinstance(piece, str) and isinstance(last, str):
        pieces[-1] = last + piece
    elif isinstance(piece, Thought) and isinstance(last, Thought):
        pieces[-1] = Thought(last.text + piece.text)
    elif isinstance(piece, CallArguments) and isinstance(last, CallArguments) and last.index == piece.index:
        pieces[-1] = CallArguments(piece.index, last.text + piece.text)
    else:
        pieces.append(piece)
