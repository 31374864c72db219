"""What detectors are shown, what they find there, and how their finds become one list. Pure.

Text is normalised first, so that no trick hides a value from a pattern: zero-width and other invisible characters go,
compatibility forms (full-width digits, ligatures) become plain, every decimal digit becomes ASCII, every dash and
space the plain one, and `\\uXXXX` what it stands for. Every hit leads back to its place in the original.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

#: All types a detector may report. LOCATION is a place named on its own; it is reported only when asked for.
_TYPES = "PERSON PHONE EMAIL CARD IBAN SSN IP ADDRESS NATIONAL_ID BANK_ACCOUNT KEY DENIED LOCATION URL"
TYPES = frozenset(_TYPES.split())
DEFAULT_TYPES = TYPES - {"LOCATION", "URL"}

_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u2027")
#: An escaped character, or one beyond ASCII.
_SPECIAL = re.compile(r"\\u([0-9a-fA-F]{4})|[^\x00-\x7f]")
#: What may stand between two pieces of one address: punctuation, line ends, marks of quoted mail.
_GLUE = re.compile(r"[\s,.;#/>|-]{0,8}")
#: What may follow a street: unit, town, region, country, each on its line or behind a comma, and at last a
#: postal code. Without the code nothing is taken.
_TAIL = re.compile(
    r"(?:[ ,>|?]{0,4}[\n,][ ,>|?]{0,6}[^\W\d][^\n\d,>]{0,30}){0,4}[\s,>]{1,6}(?:[A-Z]{1,2}-)?\d{4,6}(?:-\d{4})?(?!\w)"
)
#: A house number or code directly before a street.
_HEAD = re.compile(r"(?<!\w)\d{1,6}[A-Za-z]?,? {1,2}$")


@dataclass(frozen=True, slots=True)
class Hit:
    """`text[start:end]` is of `type`. `rank`: which of two that overlap wins; checksums outrank guesses."""

    start: int
    end: int
    type: str
    detector: str
    rank: int = 0


class Detector(Protocol):
    """Finds sensitive values in one text. May be slow, may raise: its caller fails closed.

    `is_quick`: it takes less than a millisecond for a text of some thousand characters, whatever they are.
    """

    name: str
    is_quick: bool

    def detect(self, text: str) -> list[Hit]: ...


def merge(hits: Iterable[Hit]) -> list[Hit]:
    """Hits without overlap that cover everything any hit covered, in order.

    Where two overlap they become one; its type is that of the higher rank, then of the longer.
    """
    merged: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, -hit.end)):
        if not merged or hit.start >= merged[-1].end:
            merged.append(hit)
            continue
        last = merged[-1]
        better = max(last, hit, key=lambda hit: (hit.rank, hit.end - hit.start))
        merged[-1] = Hit(
            last.start, max(last.end, hit.end), better.type, better.detector, max(last.rank, hit.rank)
        )
    return merged


# -- text as detectors should see it ---------------------------------------------------------------------


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
    if text.isascii() and "\\u" not in text:
        return Normal(text, text)
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for match in _SPECIAL.finditer(text):
        start, end = match.span()
        pieces.append(text[done:start])  # as it is
        starts.extend(range(done, start))
        ends.extend(range(done + 1, start + 1))
        plain = _plain(chr(int(match[1], 16)) if match[1] else match[0])
        pieces.append(plain)
        starts.extend([start] * len(plain))
        ends.extend([end] * len(plain))
        done = end
    pieces.append(text[done:])
    starts.extend(range(done, len(text)))
    ends.extend(range(done + 1, len(text) + 1))
    return Normal(text, "".join(pieces), starts, ends)


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
    return "".join(part for part in plain if unicodedata.category(part) not in ("Cf", "Me", "Mn"))


# -- addresses, which are found in pieces ----------------------------------------------------------------


def join_addresses(text: str, hits: Iterable[Hit]) -> list[Hit]:
    """City, state and postal code beside a street belong to the address; on their own they are places.

    `hits`: without overlap, in order.
    """
    joined: list[Hit] = []
    for hit in hits:
        last = joined[-1] if joined else None
        if last and hit.start < last.end:  # swallowed by the tail of the address before
            joined[-1] = Hit(last.start, max(last.end, hit.end), last.type, last.detector, last.rank)
            continue
        if last and _belong(text, last, hit):
            kind = "ADDRESS" if "ADDRESS" in (last.type, hit.type) else "LOCATION"
            joined[-1] = _whole(text, Hit(last.start, hit.end, kind, hit.detector, max(last.rank, hit.rank)))
        else:
            joined.append(_whole(text, hit))
    return joined


def _belong(text: str, last: Hit, hit: Hit) -> bool:
    kinds = {last.type, hit.type}
    return kinds <= {"ADDRESS", "LOCATION"} and _GLUE.fullmatch(text, last.end, hit.start) is not None


def _whole(text: str, hit: Hit) -> Hit:
    """A street with the number before it and the town and code behind it."""
    if hit.type != "ADDRESS":
        return hit
    head = _HEAD.search(text, max(0, hit.start - 9), hit.start)
    tail = _TAIL.match(text, hit.end)
    start = head.start() if head else hit.start
    return Hit(start, tail.end() if tail else hit.end, hit.type, hit.detector, hit.rank)
