"""What detectors find, and how their finds become one list. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

#: All types a detector may report. LOCATION is a place named on its own; it is reported only when asked for.
_TYPES = "PERSON PHONE EMAIL CARD IBAN SSN IP ADDRESS NATIONAL_ID BANK_ACCOUNT KEY DENIED LOCATION URL"
TYPES = frozenset(_TYPES.split())
DEFAULT_TYPES = TYPES - {"LOCATION", "URL"}


#: Ranks of guesses: of one that a model is sure of, and of one that it is not.
SURE, DOUBTED = 3, 2


@dataclass(frozen=True, slots=True)
class Hit:
    """`text[start:end]` is of `type`. `rank`: which of two that overlap wins; checksums outrank guesses."""

    start: int
    end: int
    type: str
    detector: str
    rank: int = 0


#: Called between two steps of what may take long; raises to stop.
Tick = Callable[[], None]


class Detector(Protocol):
    """Finds sensitive values in one text. May be slow, may raise: its caller fails closed.

    `is_quick`: it takes less than a millisecond for a text of some thousand characters, so that it is also shown what
    the text says where escapes and markup are looked through.
    """

    name: str
    is_quick: bool

    def detect(self, text: str) -> list[Hit]: ...


@runtime_checkable
class Interruptible(Protocol):
    """A detector that can be stopped between two steps."""

    def detect_within(self, text: str, tick: Tick) -> list[Hit]: ...


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
