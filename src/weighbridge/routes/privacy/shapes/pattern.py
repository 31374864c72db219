"""Expressions that meet text from outside: google-re2 over one byte a character, so that they take linear time. Pure.

RE2 looks neither ahead nor behind, its `\\w` knows ASCII only, and counted repeats of `\\pL` make it large and slow.
So every character becomes one byte first: ASCII itself, other letters `\\x80`, other numbers `\\x81`, signs of money
`\\x82`, letters of scripts that put no spaces between words `\\x84`, all else `\\x83`. A place in the bytes is a place
in the text. What may not stand beside a value is matched with it, and given back.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import re2

from weighbridge.routes.privacy.hits import Hit, Tick
from weighbridge.routes.privacy.reading import no_tick
from weighbridge.routes.privacy.shapes.words import (
    BEHIND,
    CONTEXT,
    Compounds,
    Context,
    Expression,
    Words,
    is_unspaced,
)

#: For use in classes: letters and numbers of scripts with spaces, and `_`; letters alone.
W = r"\w\x80\x81"
LETTER = r"A-Za-z\x80"

_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False


class _Bytes(dict[int, int]):
    def __missing__(self, code: int) -> int:
        character = chr(code)
        if character.isalpha():
            made = 0x84 if is_unspaced(character) else 0x80
        elif character.isalnum():
            made = 0x81
        else:
            made = 0x82 if unicodedata.category(character) == "Sc" else 0x83
        self[code] = made
        return made


#: Characters that are translated at a time, for the interpreter cannot be taken from a translation.
_PIECE = 1 << 16
_BYTES = _Bytes({code: code for code in range(128)})


def as_bytes(text: str) -> bytes:
    """One byte for each character."""
    if text.isascii():
        return text.encode()
    pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    return b"".join([piece.translate(_BYTES).encode("latin-1") for piece in pieces])


def compiled(expression: str) -> Expression:
    """An expression over what `as_bytes` gives."""
    made: Expression = re2.compile(expression.encode(), _OPTIONS)
    return made


class Scene:
    """A text that many patterns look at, with what each of them would work out again.

    `text` is a plain reading. `tick` is called between two steps, and may raise to stop.
    """

    def __init__(self, text: str, tick: Tick = no_tick) -> None:
        self.text = text
        self.tick = tick
        self.data = as_bytes(text)
        self.lower = text.lower()
        self.digits = len(self.data) - len(self.data.translate(None, b"0123456789"))
        self._words: dict[Words, list[tuple[int, int]]] = {}

    def words(self, words: Words) -> list[tuple[int, int]]:
        """Where words of a table stand, by their ends."""
        found = self._words.get(words)
        if found is None:
            self.tick()
            found = self._words[words] = words.places(self.text)
        return found

    def is_named(self, context: Context, start: int, end: int) -> bool:
        """Whether a word beside a value says what it is, where its context wants one."""
        if context.given is None or self.has_before(context.given, start, context.unless):
            return True
        return context.behind is not None and self._has_behind(context.behind, end)

    def _has_behind(self, words: Words, end: int) -> bool:
        """Whether one of them begins within a few characters behind a place."""
        places = self.words(words)
        next_ = bisect_right(places, (end, len(self.text)))
        return next_ < len(places) and places[next_][1] - end <= BEHIND

    def has_before(self, words: Words, start: int, unless: Compounds | None = None) -> bool:
        """Whether one of them stands shortly before a place. `unless`: what makes one another thing."""
        places = self.words(words)
        last = bisect_right(places, (start, start)) - 1
        if unless is None:
            return last >= 0 and places[last][1] >= start - CONTEXT
        while last >= 0 and places[last][1] >= start - CONTEXT:
            end, begin = places[last]
            if not unless(self.text[begin:end], self.text[end:start], self.text[start]):
                return True
            last -= 1
        return False


@dataclass(frozen=True, slots=True)
class Pattern:
    """A shape, and what a value of that shape must be besides.

    No text without one of `needs`, in lower case, or with fewer `digits` has such a value: to look for these is quick.
    """

    type: str
    expression: Expression
    valid: Callable[[str], bool] | None = None
    context: Context | None = None
    rank: int = 5
    group: int = 1
    needs: tuple[str, ...] = ()
    digits: int = 0

    def needing(self, needs: str = "", digits: int | None = None) -> Pattern:
        """The same, looked for only where one of `needs` and so many digits are."""
        return replace(self, needs=tuple(needs.split()), digits=self.digits if digits is None else digits)

    def inside(self) -> Pattern:
        """The same, of which the value is the group within."""
        return replace(self, group=2)

    def is_worth_trying(self, scene: Scene) -> bool:
        """Whether a text has what every value of this shape has, and the words that must stand before it."""
        if scene.digits < self.digits or (self.needs and not any(need in scene.lower for need in self.needs)):
            return False
        context = self.context
        if context is None or context.given is None:
            return True
        return bool(
            scene.words(context.given) or (context.behind is not None and scene.words(context.behind))
        )

    def hits(self, scene: Scene) -> Iterator[Hit]:
        """The values in a text."""
        text, position = scene.text, 0
        while match := self.expression.search(scene.data, position):
            scene.tick()
            start, end = match.span(self.group)
            position = max(end - 1, match.span(1)[0] + 1)  # what stands behind may stand before the next
            if self.context is not None and not scene.is_named(self.context, start, end):
                continue
            if self.valid is not None and not self.valid(text[start:end]):
                continue
            if self.context is None or self.context.allows(text, start, end):
                yield Hit(start, end, self.type, "patterns", self.rank)


class Edges(NamedTuple):
    """What may not stand beside a value: classes of characters, None for whatever there is.

    `unless_digit`: characters that may follow, but not with a digit behind them.
    """

    before: str | None = W
    after: str | None = W
    unless_digit: str = ""

    def around(self, core: str) -> str:
        """The whole expression; the value is its first group."""
        head = "" if self.before is None else rf"(?:^|[^{self.before}])"
        if self.after is None:
            return f"{head}({core})"
        tail = rf"\z|[^{self.after}{self.unless_digit}]"
        if self.unless_digit:
            tail += rf"|[{self.unless_digit}](?:\z|[^0-9])"
        return f"{head}({core})(?:{tail})"


#: Digits that a value of a type has at least; one of another type may have none.
_DIGITS = {"CARD": 12, "IBAN": 8, "SSN": 9, "PHONE": 7, "NATIONAL_ID": 6, "ADDRESS": 1}


def shape(
    type: str,
    core: str,
    valid: Callable[[str], bool] | None = None,
    edges: Edges = Edges(),  # noqa: B008 - it cannot be changed
    context: Context | None = None,
    rank: int = 5,
) -> Pattern:
    """A pattern of `core` between `edges`, that is `valid` and stands in its `context`."""
    return Pattern(type, compiled(edges.around(core)), valid, context, rank, digits=_DIGITS.get(type, 0))
