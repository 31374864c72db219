"""What a model thinks before it answers, told apart from the answer.

    <think>A key, then.</think>The key is a.       most models; some prompts end with the first mark
    [THINK]A key, then.[/THINK]The key is a.       Mistral

Only what an answer begins with is a thought: a mark further down is text, and so is one that closes nothing. Space
beside the marks is part of neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.server.styles.pieces import Piece, Thought, append
from weighbridge.server.styles.reading import MAX_SPACE, SPACE


@dataclass(frozen=True, slots=True)
class ReasoningStyle:
    """The marks around what is thought."""

    name: str
    begin: str
    end: str


THINK = ReasoningStyle("think", "<think>", "</think>")
THINK_BRACKETS = ReasoningStyle("mistral", "[THINK]", "[/THINK]")
#: A thought has neither begun nor been ruled out; it is read; the answer is read, first the space before it.
_UNKNOWN, _THINKING, _SPACE, _ANSWERING = range(4)


class ReasoningStream:
    """Splits one answer. `is_open`: its prompt ends within a thought."""

    def __init__(self, style: ReasoningStyle, is_open: bool = False) -> None:
        self._style = style
        self._state = _THINKING if is_open else _UNKNOWN
        self._is_open = is_open
        self._held = ""
        self._thought = False  # something of a thought was told

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for place, character in enumerate(text):
            if self._state == _ANSWERING:
                append(pieces, text[place:])
                break
            self._held += character
            self._next(pieces)
        return pieces

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if not held or self._state == _SPACE:
            return []
        if self._state == _THINKING:
            return [Thought(held)] if held.strip(SPACE) else []
        return [held]

    def _next(self, pieces: list[Piece]) -> None:
        if self._state == _THINKING:
            self._think(pieces)
            return
        begun = self._held.lstrip(SPACE)
        if self._state == _SPACE:
            self._held = begun
        if self._state == _UNKNOWN and begun == self._style.begin:
            self._state, self._held = _THINKING, ""
        elif len(self._held) > MAX_SPACE or (
            begun and not (self._state == _UNKNOWN and self._style.begin.startswith(begun))
        ):
            told = self._held if self._state == _UNKNOWN else begun
            self._state, self._held = _ANSWERING, ""
            append(pieces, told)

    def _think(self, pieces: list[Piece]) -> None:
        """Tell what cannot be part of the mark behind the thought, or space before it, any more."""
        if not self._thought and self._again():
            return
        if self._held.endswith(self._style.end):
            thought = self._held[: -len(self._style.end)].rstrip(SPACE)
            self._state, self._held = _SPACE, ""
        else:
            thought = self._held[: len(self._held) - self._kept()]
            self._held = self._held[len(thought) :]
        if not self._thought:
            thought = thought.lstrip(SPACE)
        if thought:
            self._thought = True
            append(pieces, Thought(thought))

    def _again(self) -> bool:
        """Whether the mark that the prompt ends with is written once more; it is no thought."""
        begun = self._held.lstrip(SPACE)
        if self._is_open and begun == self._style.begin:
            self._is_open, self._held = False, ""
            return True
        return self._is_open and self._style.begin.startswith(begun) and len(self._held) <= MAX_SPACE

    def _kept(self) -> int:
        """Characters at the end that may be space before the mark, or its first part."""
        held, end = self._held, self._style.end
        partial = next(
            (size for size in range(min(len(end), len(held)), 0, -1) if held.endswith(end[:size])), 0
        )
        before = held[: len(held) - partial]
        return partial + min(len(before) - len(before.rstrip(SPACE)), MAX_SPACE)
