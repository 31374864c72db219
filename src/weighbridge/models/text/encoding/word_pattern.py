"""Regular expressions that cut text into words, compiled for the C++ of `word_split.cpp`.

Every class of characters in a pattern becomes a numbered set, whose members are found out elsewhere, by asking the
regular expression library that the `tokenizers` package uses: here is only how sets follow one another. What is
not understood (anchors, lazy or possessive repetition, references) raises UnsupportedModel, never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from weighbridge.errors import UnsupportedModel

_RUN, _SPLIT, _JUMP, _NOT_NEXT, _MATCH = range(5)
#: One bit per set in 32, of which two say whether a character is known and whether it is refused.
MAX_SETS = 30

#: (operation, set, low, high), as `Instruction` in word_split.h.
Instruction = tuple[int, int, int, int]
#: The first of each alternative: (sets that it can begin with, where it starts).
Program = tuple[list[tuple[int, int]], list[Instruction]]

_CLASS = re.compile(r"\[\^?(?:\\.|[^\\\[\]])+\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[pP]\{\^?[A-Za-z_]+\}|[sSdDwWrnt]|[^\w\s])")
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
#: What case-insensitive groups may spell: two letters next to each other could also be one ligature elsewhere.
_FOLDED = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\[sdmt\]|ll|ve|re|\|")


@dataclass(frozen=True, slots=True)
class PatternRun:
    """Members of a set, as many as there are from `low` to `high` (-1: without end)."""

    members: int
    low: int = 1
    high: int = 1


@dataclass(frozen=True, slots=True)
class NotNext:
    """No member of a set comes next."""

    members: int


@dataclass(frozen=True, slots=True)
class PatternGroup:
    """One of several sequences, or nothing where it is optional."""

    choices: list[list[PatternRun | NotNext | PatternGroup]]
    optional: bool = False


Items = list[PatternRun | NotNext | PatternGroup]


@dataclass(slots=True)
class Sets:
    """The sets of one tokenizer's patterns by what they are written like; several patterns share them."""

    sources: list[str] = field(default_factory=list)

    def bit(self, source: str) -> int:
        if source not in self.sources:
            if len(self.sources) == MAX_SETS:
                raise UnsupportedModel(f"more than {MAX_SETS} classes of characters")
            self.sources.append(source)
        return 1 << self.sources.index(source)


def compile_pattern(source: str, sets: Sets) -> Program:
    """The program of a pattern; adds its classes to `sets`. Raises UnsupportedModel for what it cannot express."""
    choices = parsed(source, sets)
    alternatives: list[tuple[int, int]] = []
    program: list[Instruction] = []
    for sequence in choices:
        first, can_be_empty = _first(sequence)
        if can_be_empty:
            raise UnsupportedModel(f"an alternative of {source!r} can match nothing")
        alternatives.append((first, len(program)))
        _emit(sequence, program)
        program.append((_MATCH, 0, 0, 0))
    return alternatives, program


def parsed(source: str, sets: Sets) -> list[Items]:
    """The alternatives of a pattern. Raises as `compile_pattern` does."""
    return _Parser(source, sets).whole()


def runs_of(source: str, sets: Sets, longest: int) -> Program:
    """The program of the pattern `source{1,longest}` for one class of characters; -1: as long as there are any."""
    bit = sets.bit(source)
    return [(bit, 0)], [(_RUN, bit, 1, longest), (_MATCH, 0, 0, 0)]


def _first(sequence: Items) -> tuple[int, bool]:
    """Return the sets that the first character of a match may be in, and whether a match may be empty."""
    sets = 0
    for node in sequence:
        if isinstance(node, NotNext):
            continue
        if isinstance(node, PatternRun):
            sets |= node.members
            if node.low > 0:
                return sets, False
            continue
        inner = [_first(choice) for choice in node.choices]
        for found, _ in inner:
            sets |= found
        if not node.optional and not any(empty for _, empty in inner):
            return sets, False
    return sets, True


def _emit(sequence: Items, program: list[Instruction]) -> None:
    for node in sequence:
        if isinstance(node, PatternRun):
            program.append((_RUN, node.members, node.low, node.high))
        elif isinstance(node, NotNext):
            program.append((_NOT_NEXT, node.members, 0, 0))
        else:
            _emit_group(node, program)


def _emit_group(group: PatternGroup, program: list[Instruction]) -> None:
    """Try each choice in its order, with all that follows the group."""
    choices = [*group.choices, []] if group.optional else group.choices
    jumps: list[int] = []
    for number, choice in enumerate(choices):
        split = len(program)
        last = number == len(choices) - 1
        if not last:
            program.append((_SPLIT, 0, 0, 0))
        _emit(choice, program)
        if not last:
            jumps.append(len(program))
            program.append((_JUMP, 0, 0, 0))
            program[split] = (_SPLIT, 0, len(program), 0)
    for jump in jumps:
        program[jump] = (_JUMP, 0, len(program), 0)


class _Parser:
    def __init__(self, source: str, sets: Sets) -> None:
        self._source = source
        self._sets = sets
        self._at = 0

    def whole(self) -> list[Items]:
        choices = self._choices(folded=False)
        if self._at < len(self._source):
            raise self._unsupported()
        # A group alone, as whole patterns are sometimes written, is its choices.
        while len(choices) == 1 and len(choices[0]) == 1 and isinstance(choices[0][0], PatternGroup):
            group = choices[0][0]
            if group.optional:
                break
            choices = group.choices
        return choices

    def _unsupported(self) -> UnsupportedModel:
        return UnsupportedModel(f"the pattern {self._source!r} at character {self._at}")

    def _next(self, expected: str) -> bool:
        found = self._source.startswith(expected, self._at)
        self._at += len(expected) * found
        return found

    def _choices(self, folded: bool) -> list[Items]:
        choices = [list(self._sequence(folded))]
        while self._next("|"):
            choices.append(list(self._sequence(folded)))
        return choices

    def _sequence(self, folded: bool) -> Iterator[PatternRun | NotNext | PatternGroup]:
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            if self._next("(?!"):
                yield NotNext(self._set(folded=False))
                self._close()
            elif self._next("(?i:"):
                self._check_folded()
                yield self._group(folded=True)
            elif self._next("(?:") or (self._source[self._at + 1 : self._at + 2] != "?" and self._next("(")):
                yield self._group(folded)
            else:
                members = self._set(folded)
                yield PatternRun(members, *self._repetition())

    def _group(self, folded: bool) -> PatternGroup:
        choices = self._choices(folded)
        self._close()
        low, high = self._repetition()
        if high != 1:
            raise self._unsupported()
        return PatternGroup(choices, optional=low == 0)

    def _close(self) -> None:
        if not self._next(")"):
            raise self._unsupported()

    def _check_folded(self) -> None:
        inside = self._source[self._at : self._source.find(")", self._at)]
        if "".join(_FOLDED.findall(inside)) != inside:
            raise self._unsupported()

    def _set(self, folded: bool) -> int:
        """Return the bit of the class, escape or character that begins here."""
        for form in (_CLASS, _ESCAPE):
            found = form.match(self._source, self._at)
            if found is not None:
                source = found[0]
                break
        else:
            source = self._source[self._at : self._at + 1]
            if not source or source in r"\[](){}|*+?.^$#":
                raise self._unsupported()
        if source.startswith("[") and "&&" in source:
            raise self._unsupported()
        self._at += len(source)
        return self._sets.bit(f"(?i:{source})" if folded else source)

    def _repetition(self) -> tuple[int, int]:
        count = _COUNT.match(self._source, self._at)
        if count is not None:
            self._at = count.end()
            low = int(count[1])
            bounds = (low, low if not count[2] else int(count[3]) if count[3] else -1)
        elif self._next("+"):
            bounds = (1, -1)
        elif self._next("*"):
            bounds = (0, -1)
        elif self._next("?"):
            bounds = (0, 1)
        else:
            return 1, 1
        if self._source[self._at : self._at + 1] in ("?", "+", "*", "{"):  # lazy, possessive or nested
            raise self._unsupported()
        if bounds[1] == 0 or (bounds[1] > 0 and bounds[1] < bounds[0]) or max(bounds) > 1000:
            raise self._unsupported()
        return bounds
