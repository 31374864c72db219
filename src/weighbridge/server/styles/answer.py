"""One answer, read by the styles of its model: thoughts first, then text and calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.server.styles.choice import Styles
from weighbridge.server.styles.harmony import HARMONY_TOOLS, HarmonyStream
from weighbridge.server.styles.pieces import CallBegun, Piece, PieceStream
from weighbridge.server.styles.reasoning import ReasoningStream
from weighbridge.server.styles.tool_stream import ToolStream


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """How the choices of one request are read. `tools`: the schemas of those that may be called, by name, or None;
    `forced`: all of it is a call; `thinking`: the prompt ends within a thought."""

    styles: Styles
    tools: Mapping[str, Any] | None = None
    forced: bool = False
    thinking: bool = False
    single: bool = False  # one call is made at the most: the answer ends before a second one

    @property
    def is_plain(self) -> bool:
        """Whether the answer is its text."""
        return self._tool_reader is None and self.styles.reasoning is None and not self._is_harmony

    @property
    def _is_harmony(self) -> bool:
        return self.styles.tools is HARMONY_TOOLS and not self.forced

    @property
    def _tool_reader(self) -> ToolStream | None:
        if self.tools is None or (self.styles.tools is None and not self.forced):
            return None
        return ToolStream(self.tools, self.styles.tools or HARMONY_TOOLS, self.forced)

    @property
    def marks(self) -> tuple[str, ...]:
        """What is read although it may be a control token, which else has no text."""
        style, reasoning = self.styles.tools, self.styles.reasoning
        tools = style.marks if style is not None and (self.tools is not None or self._is_harmony) else ()
        return (*tools, *((reasoning.begin, reasoning.end) if reasoning is not None else ()))

    def stream(self) -> PieceStream:
        """A reader of one choice."""
        return _OneCall(self._stream()) if self.single else self._stream()

    def _stream(self) -> PieceStream:
        if self._is_harmony:
            return HarmonyStream(self.tools or {}, thinks=self.styles.reasoning is not None)
        style = self.styles.reasoning
        thoughts = ReasoningStream(style, self.thinking) if style is not None and not self.forced else None
        return _AnswerStream(thoughts, self._tool_reader)


class _OneCall:
    """Leaves out what comes from the second call on."""

    def __init__(self, inner: PieceStream) -> None:
        self._inner = inner
        self._called = self._over = False

    def push(self, text: str) -> Sequence[Piece]:
        return [] if self._over else self._first(self._inner.push(text))

    def finish(self) -> Sequence[Piece]:
        return [] if self._over else self._first(self._inner.finish())

    def _first(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        for place, piece in enumerate(pieces):
            if isinstance(piece, CallBegun):
                if self._called:
                    self._over = True
                    return pieces[:place]
                self._called = True
        return pieces


class _AnswerStream:
    """Thoughts are told apart first: a call within a thought is none."""

    def __init__(self, thoughts: ReasoningStream | None, calls: ToolStream | None) -> None:
        self._thoughts = thoughts
        self._calls = calls

    def push(self, text: str) -> list[Piece]:
        return self._read(self._thoughts.push(text) if self._thoughts is not None else [text] if text else [])

    def finish(self) -> list[Piece]:
        pieces = self._read(self._thoughts.finish() if self._thoughts is not None else [])
        return pieces if self._calls is None else [*pieces, *self._calls.finish()]

    def _read(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        read: list[Piece] = []
        for piece in pieces:
            read += self._calls.push(piece) if isinstance(piece, str) else [piece]
        return read
