"""Answers of gpt-oss: messages on channels, which hold thoughts, text and calls alike.

<|channel|>analysis<|message|>A key, then.<|end|>
<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"key": "a"}<|call|>
<|start|>assistant<|channel|>final<|message|>The key is a.<|return|>
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from weighbridge.server.styles.pieces import CallArguments, CallBegun, Piece, Thought, append
from weighbridge.server.styles.reading import MAX_SPACE, SPACE, ToolStyle

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
#: What ends the body of a message; a header that begins without an end before it ends it as well.
_BODY_MARKS = (*_ENDS, _START, _CHANNEL)
#: Its calls stand in messages, which `HarmonyStream` reads; it has no readers of its own.
HARMONY_TOOLS = ToolStyle("harmony", marks=(_START, _CHANNEL, _MESSAGE, "<|constrain|>", *_ENDS))
_TO = "to=functions."
_RECIPIENT = re.compile(re.escape(_TO) + r"([^\s<]+)")
_CHANNEL_NAME = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")
#: Characters of a header; what is longer is text.
MAX_HEADER = 512
_TEXT, _THOUGHT, _CALL = range(3)


class HarmonyStream:
    """Reads one answer. `tools`: what may be called; `thinks`: analysis is told as a thought, else as text."""

    def __init__(self, tools: Mapping[str, Any], thinks: bool = True) -> None:
        self._tools = tools
        self._thinks = thinks
        self._pieces: list[Piece] = []
        self._held = ""
        self._starts = True  # the prompt has begun a header, which may go on: to=functions.look<|channel|>...
        self._in_header = False
        self._between = True  # a message has ended, and none has begun
        self._kind = _TEXT
        self._calls = 0
        self._told = {_TEXT: False, _THOUGHT: False}  # of the message: something has been

    def push(self, text: str) -> list[Piece]:
        for character in text:
            self._held += character
            if self._starts:
                self._start()
            elif self._in_header:
                self._head()
            else:
                self._body()
        return self._take()

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if not self._in_header and not (held and any(mark.startswith(held) for mark in _BODY_MARKS)):
            self._tell(held)
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _start(self) -> None:
        """What an answer begins with: the rest of a header, or text that has none."""
        begun = self._held.lstrip(SPACE)
        if len(self._held) <= MAX_SPACE and any(mark.startswith(begun) for mark in (_TO, _CHANNEL, _START)):
            self._in_header = begun in (_TO, _CHANNEL, _START)
            self._starts = not self._in_header
            return
        self._starts = self._between = False
        self._body()

    def _head(self) -> None:
        """The header, up to the mark before the message."""
        if self._held.endswith(_MESSAGE):
            header, self._held, self._in_header = self._held, "", False
            self._enter(header)
        elif len(self._held) > MAX_HEADER:
            text, self._held, self._in_header = self._held, "", False
            self._kind = _TEXT
            self._text(text)

    def _enter(self, header: str) -> None:
        self._between = False
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL_NAME.search(header)
        if recipient is not None and recipient[1] in self._tools:
            self._kind = _CALL
            self._pieces.append(CallBegun(self._calls, f"call_{uuid.uuid4().hex[:24]}", recipient[1]))
            self._calls += 1
        elif recipient is not None or "to=" in header:
            self._kind = _TEXT
            self._text(header)
        else:
            self._kind = (
                _THOUGHT if self._thinks and channel is not None and channel[1] == "analysis" else _TEXT
            )
            if self._told[self._kind]:
                self._tell("\n")  # the messages of a channel are paragraphs

    def _body(self) -> None:
        """The message, up to the mark behind it."""
        held = self._held
        mark = next((mark for mark in _BODY_MARKS if held.endswith(mark)), None)
        if mark is None:
            kept = next((size for size in range(min(12, len(held)), 0, -1) if self._begins(held[-size:])), 0)
            self._held = held[len(held) - kept :]
            self._tell(held[: len(held) - kept])
            return
        self._tell(held[: -len(mark)])
        self._between = True
        self._kind = _TEXT
        self._in_header = mark in (_START, _CHANNEL)
        self._held = mark if self._in_header else ""

    def _begins(self, tail: str) -> bool:
        return any(mark.startswith(tail) for mark in _BODY_MARKS)

    def _tell(self, text: str) -> None:
        if not text:
            return
        if self._kind == _CALL:
            append(self._pieces, CallArguments(self._calls - 1, text))
        elif self._kind == _THOUGHT:
            self._told[_THOUGHT] = True
            append(self._pieces, Thought(text))
        elif not self._between or text.strip(SPACE):
            self._between = False
            self._text(text)

    def _text(self, text: str) -> None:
        if text:
            self._told[_TEXT] = True
            append(self._pieces, text)
