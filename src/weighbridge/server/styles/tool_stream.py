"""Tool calls in the text of an answer, read as it comes: the same pieces wherever the text is split.

A call is certain once its name is known, is that of a tool which was offered, and its arguments have begun. What turns
out to be none before that is text after all, to the letter; what goes wrong after that (a bracket missing, an answer
cut off) is a call whose arguments are no JSON, which is how OpenAI's API shows it too. How calls are written is the
style's (`styles`).
"""

from __future__ import annotations

import re
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from weighbridge.server.styles.json_calls import FORCED
from weighbridge.server.styles.pieces import CallArguments, CallBegun, Piece, append
from weighbridge.server.styles.reading import MAX_SPACE, SPACE, CallOpening, NoCall, Reading, ToolStyle

#: The name in what a forced call begins with, and the quotation mark behind it.
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)("?)')
#: What may stand between calls and is no text.
_BETWEEN = SPACE + ",;]"
#: Characters that may be held for what may yet be a call.
MAX_HELD = 1 << 16
#: Characters of what was none that are looked through for the mark of another one.
_MAX_AGAIN = 512


class ToolStream:
    """Parses one answer. `tools`: the JSON schema of each that may be called, by name."""

    def __init__(self, tools: Mapping[str, Any], style: ToolStyle, forced: bool = False) -> None:
        """`forced`: the whole answer is a call, whatever of it comes."""
        self.tools = tools
        self._style = FORCED if forced else style
        self._forced = forced
        self._pieces: list[Piece] = []
        self._held = ""  # read, and neither shown nor known to be part of a call
        self._shown = False
        self._starts_line = True
        self._calls = 0
        self._opening: CallOpening | None = None  # of the call being read
        self._inside = False  # a call that is certain, and has not ended
        self._ends: tuple[str, ...] = ()  # marks that would close the last call
        self._reading: Reading[None] | None = None

    def push(self, text: str) -> list[Piece]:
        """What is certain now that `text` has come."""
        left = deque(text)
        while left:
            left.extendleft(reversed(self._next(left.popleft())))
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        held, self._held, self._reading = self._held, "", None
        if self._forced and not self._calls and not self._shown:
            self._begin_cut_off(held)
            return self._take()
        rest = held.strip(_BETWEEN) if self._calls else held
        closes = any(end.startswith(rest) for end in self._ends)
        if not self._inside and not closes:
            self._say(held if rest else "")
        return self._take()

    def _begin_cut_off(self, held: str) -> None:
        """A call that was cut off before its arguments, where its name is plain by then; else nothing is shown."""
        found = _NAME.search(held)
        begun = found[1] if found is not None else ""
        whole = found is not None and bool(found[2])
        named = [name for name in self.tools if name == begun or (not whole and name.startswith(begun))]
        if len(named) == 1:
            self.begin(named[0])

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _next(self, character: str) -> str:
        """Read one character. What it returns has to be read again."""
        self._held += character
        if self._reading is None:
            return self._look_for_a_call()
        try:
            self._reading.send(character)
            if len(self._held) > MAX_HELD:
                raise NoCall
        except StopIteration:
            self._reading, self._held = None, ""
            if self._opening is not None and self._opening.reads_ends:
                self._ends = ()
        except NoCall:
            return self._give_up()
        return ""

    # -- text ------------------------------------------------------------------------------------------

    def _look_for_a_call(self) -> str:
        """Show what no call can begin with any more. Space before a call is part of neither."""
        while (start := self._held.lstrip(SPACE)) and not self._may_be_a_mark(start):
            if start[0] in "{[" and not self._shown and not self._calls and (bare := self._opened("")):
                self._read(bare, start)
                return start
            shown = len(self._held) - len(start) + 1
            self._say(self._held[:shown])
            self._held = self._held[shown:]
        if not start and len(self._held) > MAX_SPACE:
            self._say(self._held)
            self._held = ""
        elif start in self._ends:
            self._held = ""
        elif start and (opening := self._opened(start)) is not None:
            self._read(opening, "")
        return ""

    def _may_be_a_mark(self, start: str) -> bool:
        if any(end.startswith(start) for end in self._ends):
            return True
        return any(one.mark.startswith(start) and self._may_open(one) for one in self._style.openings)

    def _may_open(self, opening: CallOpening) -> bool:
        """Whether it may open a call here, behind the space that is held."""
        space = self._held[: len(self._held) - len(self._held.lstrip(SPACE))]
        return not opening.starts_line or self._starts_line or "\n" in space

    def _opened(self, mark: str) -> CallOpening | None:
        return next((one for one in self._style.openings if one.mark == mark), None)

    def _say(self, text: str) -> None:
        if text.strip():
            self._shown, self._ends = True, ()
        if text:
            self._starts_line = text.endswith("\n")
            append(self._pieces, text)

    # -- calls -----------------------------------------------------------------------------------------

    def _read(self, opening: CallOpening, begun: str) -> None:
        """From here on a call is read; `begun` is what of it will be read again."""
        self._opening = opening
        self._reading = opening.read(self)
        next(self._reading)
        self._held = self._held[: len(self._held) - len(begun)]

    def _give_up(self) -> str:
        """What was read is no call. Another may begin within what is shown of it."""
        held, self._held = self._held, ""
        self._reading, self._inside = None, False
        if self._calls and not held[:-1].strip(_BETWEEN):
            self._held = held[:-1]
            return held[-1]
        again = self._next_mark(held)
        text = held[:again].rstrip(SPACE)
        self._say(text)
        return held[len(text) :]

    def _next_mark(self, held: str) -> int:
        """Where the next mark may begin; at the latest the last character."""
        last = len(held) - 1
        first = len(held) - len(held.lstrip(SPACE)) + 1
        marks = [one.mark for one in self._style.openings if one.mark]
        for place in range(first, last if last <= _MAX_AGAIN else 0):
            if any(held.startswith(mark, place) or mark.startswith(held[place:]) for mark in marks):
                return place
        return last

    # -- where readers tell of calls -------------------------------------------------------------------

    def begin(self, name: str, call_id: str = "") -> None:
        if name not in self.tools:
            raise NoCall
        self._pieces.append(CallBegun(self._calls, call_id or f"call_{uuid.uuid4().hex[:24]}", name))
        self._calls += 1
        self._inside, self._held = True, ""
        self._ends = self._opening.ends if self._opening is not None else ()

    def argue(self, text: str) -> None:
        self._held = ""
        if text:
            append(self._pieces, CallArguments(self._calls - 1, text))

    def end(self) -> None:
        self._held, self._inside = "", False
