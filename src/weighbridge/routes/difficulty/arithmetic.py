"""Sums in a text, done again. Pure; nothing is ever evaluated as code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import re2

_OPTIONS = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False

#: An amount: digits with grouping and decimals, a percent sign behind or not.
_NUMBER = re.compile(
    r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.,])-?\d+(?:\.\d+)?|(?<=[\w,])(?<!\d)\d+(?:\.\d+)?"
)
_ATOM = r"\(* *[$\x83\x84]? ?-?[0-9][0-9,]*(?:\.[0-9]+)? ?%? ?(?:[A-Za-z]{1,12} ?){0,3}\)*"
#: Over what `_bytes` gives, in linear time: three amounts in words of 24 letters and no `=` behind them took a
#: backtracking engine a second, four a minute and more.
_CHAIN = re2.compile(
    rf"({_ATOM}(?: *[-+*/x\x80-\x82] *{_ATOM}){{1,12}}) *= *[$\x83\x84]? ?(-?[0-9][0-9,]*(?:\.[0-9]+)?)?".encode(),
    _OPTIONS,
)
_TOKENS = re.compile(r"\d[\d,]*(?:\.\d+)?%?|[-+*/x×÷·()]")
_NOTE = re.compile(r"<<([^<>]{1,200})>>")
_TIMES, _OVER = frozenset("*x×·"), frozenset("/÷")


@dataclass(frozen=True, slots=True)
class Equations:
    """Of all `a op b = c` in a text. `unfinished`: one whose right side is missing."""

    right: int = 0
    wrong: int = 0
    operations: int = 0
    last_is_wrong: bool = False
    unfinished: bool = False
    results: frozenset[float] = field(default_factory=frozenset)
    last_result: float | None = None


def numbers(text: str) -> list[float]:
    """All numbers in the order they stand."""
    return [_value(match[0]) for match in _NUMBER.finditer(text)]


class _Bytes(dict[int, int]):
    """What stands for a character: ASCII itself, a digit for any digit, a space for any space, signs of sums and money
    as below, and a byte of no meaning for all else."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        self[code] = made = 0x30 if character.isdecimal() else 0x20 if character.isspace() else 0xFF
        return made


_ASCII = {code: 0x20 if chr(code).isspace() else code for code in range(128)}
_BYTES = _Bytes(_ASCII | dict(zip(map(ord, "×÷·€£"), range(0x80, 0x85), strict=True)))


def chains(text: str) -> Iterator[tuple[str, str | None]]:
    """Each `a op b ... =` in a text, and what stands behind it, if that is a number."""
    for match in _CHAIN.finditer(text.translate(_BYTES).encode("latin-1")):
        result = match.span(2)
        yield text[slice(*match.span(1))], None if result[0] < 0 else text[slice(*result)]


def equations(text: str) -> Equations:
    """Find the sums in `text` and do them again."""
    notes = _NOTE.findall(text)  # <<3*60=180>>, as some models mark their sums
    outside = _NOTE.sub("", text)
    right = wrong = operations = 0
    last_is_wrong, unfinished = False, "<<" in outside
    results: list[float] = []
    for said, result in chains("\n".join(notes) if notes else outside):
        if result is None:
            unfinished = True
            continue
        tokens = _TOKENS.findall(said)
        computed, claimed = evaluate(tokens), _value(result)
        operations += sum(token in "+-*/x×÷·" for token in tokens)
        if computed is None:
            continue
        results.append(claimed)
        last_is_wrong = abs(computed - claimed) > max(0.011, 0.006 * abs(computed))
        wrong += last_is_wrong
        right += not last_is_wrong
    last = results[-1] if results else None
    return Equations(right, wrong, operations, last_is_wrong, unfinished, frozenset(results), last)


def evaluate(tokens: list[str]) -> float | None:
    """The value of a sum by the usual precedence; None where it is none (brackets, division by zero)."""
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ValueError, ZeroDivisionError, IndexError, OverflowError, RecursionError):
        return None
    return value if parser.position == len(tokens) else None


class _Parser:
    """Recursive descent over + and -, then * and /, then brackets, signs and numbers."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def sum(self) -> float:
        value = self.product()
        while self._peek() in ("+", "-"):
            value = value + self.product() if self._take() == "+" else value - self.product()
        return value

    def product(self) -> float:
        value = self.factor()
        while self._peek() in _TIMES or self._peek() in _OVER:
            value = value * self.factor() if self._take() in _TIMES else value / self.factor()
        return value

    def factor(self) -> float:
        token = self._take()
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            if self._take() != ")":
                raise ValueError("a bracket is not closed")
            return value
        return _value(token)

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1]


def _value(text: str) -> float:
    scale = 0.01 if text.endswith("%") else 1.0
    return float(text.rstrip("%").replace(",", "")) * scale
