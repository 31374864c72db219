"""Expressions that meet text from outside: google-re2 over one byte a character, so that they take linear time. Pure.

RE2 looks neither ahead nor behind, its `\\w` knows ASCII only, and counted repeats of `\\pL` make it large and slow.
So every character becomes one byte first: ASCII itself, other letters `\\x80`, other numbers `\\x81`, signs of money
`\\x82`, letters of scripts that put no spaces between words `\\x84`, all else `\\x83`. A place in the bytes is a place
in the text. What may not stand beside a value is matched with it, and given back.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import re2

from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.shapes.words import Context, Expression, is_unspaced

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


_BYTES = _Bytes({code: code for code in range(128)})


def as_bytes(text: str) -> bytes:
    """One byte for each character."""
    return text.encode() if text.isascii() else text.translate(_BYTES).encode("latin-1")


def compiled(expression: str) -> Expression:
    """An expression over what `as_bytes` gives."""
    made: Expression = re2.compile(expression.encode(), _OPTIONS)
    return made


@dataclass(frozen=True, slots=True)
class Pattern:
    """A shape, and what a value of that shape must be besides.

    `needs`: no text without one of these, in lower case, has such a value. Looking for them is much quicker.
    """

    type: str
    expression: Expression
    valid: Callable[[str], bool] | None = None
    context: Context | None = None
    rank: int = 5
    group: int = 1
    needs: tuple[str, ...] = ()

    def hits(self, text: str, data: bytes) -> Iterator[Hit]:
        """The values in a text; `data` is `as_bytes` of it."""
        position = 0
        while match := self.expression.search(data, position):
            start, end = match.span(self.group)
            position = max(end - 1, match.span(1)[0] + 1)  # what stands behind may stand before the next
            if self.valid is not None and not self.valid(text[start:end]):
                continue
            if self.context is None or self.context.allows(text, start, end):
                yield Hit(start, end, self.type, "patterns", self.rank)


def shape(
    type: str,
    core: str,
    valid: Callable[[str], bool] | None = None,
    *,
    before: str | None = W,
    after: str | None = W,
    unless_digit: str = "",
    context: Context | None = None,
    rank: int = 5,
    inner: bool = False,
    needs: str = "",
) -> Pattern:
    """A pattern of `core` between characters that are not of the classes `before` and `after`.

    `unless_digit`: characters that may follow, but not with a digit behind them. `inner`: the value is the group of
    `core`, not all of it.
    """
    head = "" if before is None else rf"(?:^|[^{before}])"
    tail = "" if after is None else rf"(?:\z|[^{after}{unless_digit}]"
    if after is not None:
        tail += rf"|[{unless_digit}](?:\z|[^0-9]))" if unless_digit else ")"
    expression = compiled(f"{head}({core}){tail}")
    return Pattern(type, expression, valid, context, rank, 2 if inner else 1, tuple(needs.split()))
