r"""Which regular expressions cut a text in time that grows with its length, by their shape.

The `tokenizers` library runs them with an engine that backtracks: `(a+)+b` takes for ever, and `\s+$` the square of the
spaces there are. Every vocabulary that people serve is cut by alternatives of runs, such as

    's|'t| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+

and of those it can be said. A run without bound whose rest can match nothing never looks back: what it looked at is
the match. A run that can fail behind it (`\s*[\r\n]+`, `\s+(?!\S)`) has looked at characters in vain, so the next
alternative has to begin with the same run and so on, until one takes it whole (`\s+`): then no character is looked at
in vain more than three times. What is not understood has no such bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from weighbridge.errors import UnsupportedModel
from weighbridge.models.text.encoding.word_pattern import (
    Items,
    NotNext,
    PatternGroup,
    PatternRun,
    Sets,
    parsed,
)

#: Characters of a pattern, its alternatives, and members that a run with a bound may take.
LONGEST_PATTERN, MOST_ALTERNATIVES, LONGEST_RUN = 4096, 64, 16
#: Ways in which the bounded parts of an alternative may match at one place: all are tried where it fails.
MOST_WAYS = 64


def is_linear(source: str) -> bool:
    """Whether the time to cut a text with this pattern is known to grow with its length alone."""
    if len(source) > LONGEST_PATTERN:
        return False
    try:
        choices = parsed(source, Sets())
    except UnsupportedModel:
        return False
    if len(choices) > MOST_ALTERNATIVES or any(_ways(items) > MOST_WAYS for items in choices):
        return False
    return all(_is_bounded(choices, index) for index in range(len(choices)))


def _is_bounded(choices: Sequence[Items], index: int) -> bool:
    """Whether what an alternative looks at is its match, but for what is looked at a few times in vain."""
    items = choices[index]
    at = next((number for number, item in enumerate(items) if _is_endless(item)), None)
    if at is None:
        return not any(_has_endless(item) for item in items)
    prefix, run, rest = items[:at], items[at], items[at + 1 :]
    if any(_has_endless(item) for item in [*prefix, *rest] if isinstance(item, PatternGroup)):
        return False
    if _cannot_fail(rest):
        return True
    fails_once = isinstance(rest[0], NotNext) or (
        isinstance(rest[0], PatternRun) and rest[0].low <= LONGEST_RUN
    )
    if (
        not fails_once
        or not _cannot_fail(rest[1:])
        or not all(isinstance(item, PatternRun) for item in prefix)
    ):
        return False
    return index + 1 < len(choices) and _takes_over(choices[index + 1], prefix, run)


def _takes_over(items: Items, prefix: Items, run: object) -> bool:
    """Whether an alternative begins as the one before it, with a run of the same set that one member is enough for."""
    at = len(prefix)
    if items[:at] != prefix or len(items) <= at:
        return False
    own = items[at]
    assert isinstance(run, PatternRun)
    return isinstance(own, PatternRun) and own.members == run.members and own.low == 1 and own.high == -1


def _is_endless(item: object) -> bool:
    return isinstance(item, PatternRun) and not 0 <= item.high <= LONGEST_RUN


def _has_endless(item: object) -> bool:
    if isinstance(item, PatternGroup):
        return any(_has_endless(one) for choice in item.choices for one in choice)
    return _is_endless(item)


def _cannot_fail(items: Iterable[object]) -> bool:
    return all(isinstance(item, PatternRun | PatternGroup) and _may_be_empty(item) for item in items)


def _may_be_empty(item: PatternRun | PatternGroup) -> bool:
    return item.optional if isinstance(item, PatternGroup) else item.low == 0


def _ways(items: Items) -> int:
    """In how many ways the parts that have a bound may match at one place, whatever stands there."""
    return prod([_ways_of(item) for item in items])


def _ways_of(item: PatternRun | NotNext | PatternGroup) -> int:
    if isinstance(item, PatternGroup):
        return sum([_ways(choice) for choice in item.choices]) + item.optional
    if isinstance(item, NotNext) or _is_endless(item):
        return 1
    return item.high - item.low + 1
