"""Where in JSON the next character of a text stands, as the text comes in pieces. Pure.

    {"to": "ann", "raw": "{\\"cc\\": \\"|      depth 2: a string of JSON in a string of JSON

A text is prose until a `{` or `[` begins what goes on like JSON, be it all of the text, a block of code, or a part.
What does not go on like JSON was prose after all.
"""

from __future__ import annotations

import re

#: JSON within JSON within a string: this deep, then it is text. A quote so deep has a backslash for each power of two,
#: so that no text of a size that is served gets there.
DEPTH = 24

_OPENING = re.compile(r"[{\[]")
_ENDING = re.compile(r'["\\\n]')
#: Outside of strings: punctuation, numbers, `true`, `false`, `null`, and `NaN` and `Infinity`, which many read too.
_OUTSIDE = frozenset("{}[],: \t\r\n0123456789+-.eEtrufalsnNIiy")
#: What may stand first in an object or a list.
_FIRST = {"{": frozenset('"}'), "[": frozenset('"{[]-0123456789tfn')}
_SPACE = frozenset(" \t\r\n")
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}


class JsonPlace:
    """`depth`: how many strings of JSON, one in the other, the end of what was fed is in."""

    def __init__(self, level: int = 0) -> None:
        self._level = level
        self._open = 0  # brackets; none: this is prose
        self._first: frozenset[str] | None = None  # what must come next but for space
        self._inside: JsonPlace | None = None  # the text of the string that we are in
        self._escape = ""  # of an escape that is not complete

    @property
    def depth(self) -> int:
        return 0 if self._inside is None else 1 + self._inside.depth

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            if self._inside is not None:
                position = self._string(text, position)
            elif self._open:
                position = self._outside(text, position)
            else:
                position = self._prose(text, position)

    def value(self) -> None:
        """A value stands here that is no text of the JSON itself."""
        if self._inside is not None:
            self._inside.value()
        self._first = None

    def _prose(self, text: str, position: int) -> int:
        match = _OPENING.search(text, position) if self._level < DEPTH else None
        if match is None:
            return len(text)
        self._open, self._first = 1, _FIRST[match[0]]
        return match.end()

    def _outside(self, text: str, position: int) -> int:
        """One character between strings."""
        character = text[position]
        if self._first is not None and character not in _SPACE:
            if character not in self._first:
                return self._give_up(position)
            self._first = None
        if character == '"':
            self._inside = JsonPlace(self._level + 1)
        elif character in _FIRST:
            self._open += 1
            self._first = _FIRST[character]
        elif character in "}]":
            self._open -= 1
        elif character not in _OUTSIDE:
            return self._give_up(position)
        return position + 1

    def _string(self, text: str, position: int) -> int:
        assert self._inside is not None
        if self._escape:
            return self._escaped(text, position)
        match = _ENDING.search(text, position)
        if match is None:
            self._inside.feed(text[position:])
            return len(text)
        self._inside.feed(text[position : match.start()])
        if match[0] == '"':
            self._inside = None
        elif match[0] == "\\":
            self._escape = "\\"
        else:
            return self._give_up(match.start())  # no line ends in a string of JSON
        return match.end()

    def _escaped(self, text: str, position: int) -> int:
        assert self._inside is not None
        self._escape += text[position]
        if self._escape[1] == "u":
            if len(self._escape) == 6:
                try:
                    self._inside.feed(chr(int(self._escape[2:], 16)))
                except ValueError:
                    return self._give_up(position + 1)
                self._escape = ""
            return position + 1
        character = _SHORT.get(self._escape[1])
        if character is None:
            return self._give_up(position + 1)
        self._inside.feed(character)
        self._escape = ""
        return position + 1

    def _give_up(self, position: int) -> int:
        """This is prose; the character at `position` is looked at again as such."""
        self._open, self._first, self._inside, self._escape = 0, None, None, ""
        return position
