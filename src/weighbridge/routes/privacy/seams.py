"""Texts run together, to see what is split over them. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

#: So much of each text is looked at on either side of a seam; between, what no value and no word reaches over.
REACH = 256
_GULF = "\n" + "|" * 64 + "\n"
#: Characters of a value that give too much away where the rest of it is replaced.
TOO_MUCH = 4


class Spot(Protocol):
    """A value somewhere in a text."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def rank(self) -> int: ...


class Seams:
    """`text` is the texts with `glue` between them, the middle of long ones left out."""

    def __init__(self, texts: Sequence[str], glue: str) -> None:
        self._texts = [each for each in texts if each]
        self._glue = glue
        self._at: list[int] = []  # where a stretch begins in `text`
        self._of: list[tuple[int, int]] = []  # which text it is of, and where it begins there
        pieces: list[str] = []
        size = 0
        for number, text in enumerate(self._texts):
            stretches = [(0, text)]
            if len(text) > 2 * REACH:
                stretches = [(0, text[:REACH]), (len(text) - REACH, text[-REACH:])]
            for begin, stretch in stretches:
                between = ("" if not pieces else _GULF) if begin else (glue if pieces else "")
                pieces += [between, stretch]
                size += len(between)
                self._at.append(size)
                self._of.append((number, begin))
                size += len(stretch)
        self.text = "".join(pieces)

    def is_inside(self, start: int, end: int) -> bool:
        """Whether one text holds all of a place; else it reaches over a seam."""
        return self._of[self._stretch(start)][0] == self._of[self._stretch(end - 1)][0]

    def is_split(self, place: Spot, known: Mapping[str, Sequence[Spot]], *, are_siblings: bool) -> bool:
        """Whether a place over a seam is a value that nothing in its texts gives away.

        Texts that have nothing to do with each other can look like one: there, only what cannot be chance counts.
        """
        touched: list[tuple[int, int, Sequence[Spot]]] = []
        for stretch in range(self._stretch(place.start), self._stretch(place.end - 1) + 1):
            number, begin = self._of[stretch]
            at = self._at[stretch]
            end = self._at[stretch + 1] if stretch + 1 < len(self._at) else len(self.text)
            low = begin + max(place.start, at) - at
            high = begin + min(place.end, end) - at
            own = [one for one in known.get(self._texts[number], ()) if one.start < high and low < one.end]
            touched.append((low, high, own))
        if not any(own for _, _, own in touched):
            is_telling = place.type == "DENIED" or (place.rank >= 7 and not self._glue)
            return are_siblings or is_telling
        left = sum(high - low for low, high, own in touched if not own)
        return are_siblings and not self._glue and place.type not in ("EMAIL", "PERSON") and left >= TOO_MUCH

    def _stretch(self, position: int) -> int:
        return max(0, bisect_right(self._at, position) - 1)


def seams_of(texts: Sequence[str]) -> Iterator[Seams]:
    """Texts run together, with nothing and with a line break between; one text has no seam."""
    if sum(map(bool, texts)) > 1:
        for glue in ("", "\n"):
            yield Seams(texts, glue)
