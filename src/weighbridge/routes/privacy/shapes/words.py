"""Words beside a value that say what it is, in any script: tables of them, and where a word begins and ends. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import AnyStr, Protocol

import re2

from weighbridge.routes.privacy.reading import fold, folded, written

#: How far before a value a word may stand that says what it is, in characters; and one that says it is another thing.
CONTEXT, NEAR = 48, 32
#: How far behind it one may begin that says what it is.
BEHIND = 2

#: Scripts that put no space between words, or write endings right behind a foreign word: Thai to Khmer, Hangul, Han.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3040, 0x318F), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip

#: The longest of several alternatives, over text itself.
LONGEST = re2.Options()
LONGEST.longest_match = True
LONGEST.log_errors = False
LONGEST.max_mem = 1 << 26


class Expression(Protocol):
    """A compiled expression of google-re2."""

    def search(self, text: AnyStr, pos: int = 0) -> re.Match[AnyStr] | None: ...
    def match(self, text: AnyStr) -> re.Match[AnyStr] | None: ...
    def fullmatch(self, text: AnyStr) -> re.Match[AnyStr] | None: ...
    def finditer(self, text: AnyStr) -> Iterator[re.Match[AnyStr]]: ...


def is_unspaced(character: str) -> bool:
    """Whether words of this character's script stand side by side without a space."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _UNSPACED)


def is_edge(text: str, place: int) -> bool:
    """Whether a word, or a part of a name such as `getItem2`, may begin or end between two characters."""
    if place <= 0 or place >= len(text):
        return True
    before, behind = text[place - 1], text[place]
    if not (before.isalnum() and behind.isalnum()) or is_unspaced(before) or is_unspaced(behind):
        return True
    if before.isalpha() != behind.isalpha():
        return True
    return behind.isupper() and (before.islower() or text[place + 1 : place + 2].islower())


class Words:
    """A table of words, separated by `|` and line ends, in their folded form. `word*`: whatever it goes on with."""

    def __init__(self, table: str) -> None:
        rows = [each.strip() for each in fold(table.replace("\n", "|")).split("|")]
        self._whole = _any_of(each for each in rows if not each.endswith("*"))
        self._beginnings = _any_of(each[:-1] for each in rows if each.endswith("*"))

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where they end in a text, and where they begin: in the order of their ends."""
        reading = folded(written(text))
        found = []
        for expression in (self._whole, self._beginnings):
            for match in expression.finditer(reading.text):
                is_word = is_edge(reading.text, match.end()) or expression is self._beginnings
                if is_word and is_edge(reading.text, match.start()):
                    start, end = reading.span(*match.span())
                    found.append((end, start))
        return sorted(found)


def _any_of(alternatives: Iterable[str]) -> Expression:
    """The longest of some alternatives; of none, nothing."""
    found: Expression = re2.compile("|".join(filter(None, alternatives)) or "[^\\x00-\\x{10ffff}]", LONGEST)
    return found


class RightBefore:
    """Words with nothing behind them but marks and `no`, `number`, `id` and the like, up to the end of a text."""

    def __init__(self, table: str, exactly: str = "[^\\s\\S]") -> None:
        """`exactly`: an expression of what may stand there besides, with nothing behind it."""
        names = "|".join(each.strip() for each in fold(table.replace("\n", "|")).split("|") if each.strip())
        filler = r"(?:[ :#=./_(\[\"'>-]|\b(?:no|nr|num|number|id|ids|is|was|of|the)\b)*"
        self._expression = re2.compile(rf"(?:(?:^|[^a-z])(?:{names}){filler}|{exactly})\z")

    def __call__(self, text: str) -> bool:
        return self._expression.search(fold(text)) is not None


class RightBehind:
    """Words that a text begins with, behind a space at most."""

    def __init__(self, table: str) -> None:
        names = "|".join(each.strip() for each in fold(table.replace("\n", "|")).split("|") if each.strip())
        self._expression = re2.compile(rf"^ ?(?:{names})(?:\z|[^a-z0-9])")

    def __call__(self, text: str) -> bool:
        return self._expression.search(fold(text)) is not None


class Compounds:
    """Words that mean another thing with a common noun behind them: `fax volume`, `mobile nodes`, `phones sold`.

    `heads`: those words. `fillers`: what may stand between one of them and its value. Names and other scripts may, too.
    """

    def __init__(self, heads: str, fillers: str, others: str = "") -> None:
        """`others`: pairs that mean another thing however they are written."""
        self._heads = frozenset(heads.split())
        self._fillers = frozenset(fillers.split())
        self._others = tuple(tuple(pair.split(" ", 1)) for pair in others.split("|") if pair)

    def __call__(self, word: str, between: str, first: str) -> bool:
        """Whether `word` is said of something else, by what stands between it and a value, and by how that begins:
        no figure begins with 0."""
        word = word.lower()
        if first == "0":
            return False
        if any(word == head and _WORDS.findall(between.lower())[:1] == [tail] for head, tail in self._others):
            return True
        if word not in self._heads or _PLAIN.fullmatch(between) is None:
            return False
        return any(one not in self._fillers for one in _WORDS.findall(between))


#: Nothing but words in small letters, with spaces, hyphens and a colon at most.
_PLAIN = re.compile(r"s?(?:[ :-]*[a-z]+)+[ :-]*")
_WORDS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Context:
    """What stands beside a value: a word of `given` before it, and none of `barred` right before or `after` it.

    `unless`: what makes a word of `given` another thing. `behind`: words that do behind a value what those
    of `given` do before it.
    """

    given: Words | None = None
    barred: RightBefore | None = None
    after: RightBehind | None = None
    unless: Compounds | None = None
    behind: Words | None = None

    def allows(self, text: str, start: int, end: int) -> bool:
        """Whether nothing beside a value says that it is another thing."""
        if self.barred is not None and self.barred(text[max(0, start - NEAR) : start]):
            return False
        return self.after is None or not self.after(text[end : end + 12])
