"""Text as detectors should see it: without the tricks that hide a value from a pattern. Pure.

Zero-width and other invisible characters go, compatibility forms (full-width digits, ligatures) become plain,
every decimal digit becomes ASCII, every dash and space the plain one, and `\\uXXXX` what it stands for.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u2027")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True, slots=True)
class Normal:
    """`text[i]` came from `original[starts[i]:ends[i]]`; None: nothing was changed."""

    original: str
    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` stands in the original; what was invisible inside belongs to it."""
        if self.starts is None or self.ends is None or start >= end:
            return start, end
        return self.starts[start], self.ends[end - 1]


def normalise(text: str) -> Normal:
    escaped = "\\u" in text
    if text.isascii() and not escaped:
        return Normal(text, text)
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    while position < len(text):
        match = _ESCAPE.match(text, position) if escaped and text[position] == "\\" else None
        source = chr(int(match[1], 16)) if match else text[position]
        end = match.end() if match else position + 1
        for one in _plain(source):
            characters.append(one)
            starts.append(position)
            ends.append(end)
        position = end
    return Normal(text, "".join(characters), starts, ends)


@lru_cache(maxsize=8192)
def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _DASHES:
        return "-"
    category = unicodedata.category(character)
    if category in ("Cf", "Me", "Mn") or character in "\u115f\u1160\u3164\uffa0":
        return ""
    if category == "Zs":
        return " "
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    return "".join(one for one in plain if unicodedata.category(one) not in ("Cf", "Me", "Mn"))
