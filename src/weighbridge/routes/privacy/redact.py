"""Placeholders for values, the same one for the same value. Pure.

    alice@example.com  ->  [EMAIL_1], and EMAIL_1 where an API takes letters, digits and `_` only

A value is replaced at its places in the text as it was written. Places come from whoever found it, and from looking
for each value wherever else it stands, in any case and with any accents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product

from weighbridge.routes.privacy.fields import TextKind
from weighbridge.routes.privacy.hits import TYPES, Hit, merge
from weighbridge.routes.privacy.reading import fold, folded, readings
from weighbridge.routes.privacy.walk import Unhidable

#: Values this long are replaced wherever they stand; shorter ones only as whole words.
LONG = 6
#: Characters looked at between two ticks.
_WINDOW = 1 << 16
#: What APIs allow in a name, and how much of it.
LONGEST_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]+")

#: A word before a number as a placeholder has them, however it is written: `EMAIL_1`, `email\\_1`, `[Email 1]`.
#: Linear: every word is looked at once, and little behind it.
_NUMBERED = re.compile(
    r"(?<![A-Za-z])([A-Za-z]++)(?:\\{0,4}+_[\\_ ]{0,4}+[0-9]"
    r"|[^A-Za-z0-9]{0,8}+[0-9]{1,9}+[^A-Za-z0-9]{0,8}?[\]\u3011\uff3d])"
)
_ENDS = tuple(sorted({type.rpartition("_")[2] for type in TYPES}))
_LONGEST_TAG, _LONGEST_END = 6, max(map(len, _ENDS))


def free_tag(texts: Iterable[str]) -> str:
    """Letters that make every placeholder unlike all that is in `texts`; none where that goes without."""
    taken: set[str] = set()
    for text in texts:
        for word in _NUMBERED.findall(text):
            tail = word[-_LONGEST_TAG - _LONGEST_END :].upper()
            for end in _ENDS:
                place = tail.find(end)
                while place >= 0:
                    taken.add(tail[place + len(end) :])
                    place = tail.find(end, place + 1)
    tags = ("".join(letters) for size in range(_LONGEST_TAG + 1) for letters in product("XQZJ", repeat=size))
    for tag in tags:
        if tag not in taken:
            return tag
    raise Unhidable("every placeholder stands in the request already")


class Vault:
    """The placeholders of one request. Forgotten with it."""

    def __init__(
        self, texts: Iterable[str], values: Mapping[str, str], tick: Callable[[], None] = lambda: None
    ) -> None:
        """`texts`: all that the request holds. `values`: what must not leave, and its type. `tick` may raise."""
        self._tag = free_tag(texts)
        self._tick = tick
        self._placeholders: dict[str, tuple[str, int]] = {}  # value as written -> type, number
        #: Placeholder -> value as written.
        self.values: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._short: dict[str, str] = {}  # folded -> type
        #: First characters -> length -> folded -> type.
        self._long: dict[str, dict[int, dict[str, str]]] = {}
        for value, type in values.items():
            form = fold(value).strip()
            if len(form) >= LONG:
                self._long.setdefault(form[:LONG], {}).setdefault(len(form), {}).setdefault(form, type)
            elif form:
                self._short.setdefault(form, type)

    def hide(self, text: str, found: Sequence[Hit], kind: TextKind) -> str:
        """The text with a placeholder for each value in it. Raises Unhidable where none may stand."""
        places = merge([*found, *self.places(text)])
        if not places:
            return text
        if kind is TextKind.WORD:
            raise Unhidable("a value where the API takes words of its own only")
        if kind is TextKind.RULE:
            raise Unhidable(
                "a value stands in what the answer is held to (pattern, enum or const of a schema)"
            )
        if kind is TextKind.NAME:
            return self._hidden_name(text, places)
        parts, done = [], 0
        for place in places:
            parts += [text[done : place.start], self._placeholder(text[place.start : place.end], place.type)]
            done = place.end
        return "".join([*parts, text[done:]])

    def places(self, text: str) -> list[Hit]:
        """Where any known value stands in a text."""
        found: list[Hit] = []
        for reading in readings(text, self._tick):
            plain = folded(reading, self._tick)
            for start, end, type in [*self._long_in(plain.text), *self._short_in(plain.text)]:
                found.append(Hit(*plain.span(start, end), type, "known", 1))
        return found

    def _long_in(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Long values, found by their first characters: the time does not grow with their number."""
        for window in range(0, len(text) if self._long else 0, _WINDOW):
            self._tick()
            stop = min(window + _WINDOW, len(text) - LONG + 1)
            for start in [at for at in range(window, stop) if text[at : at + LONG] in self._long]:
                for size, values in self._long[text[start : start + LONG]].items():
                    type = values.get(text[start : start + size])
                    if type is not None:
                        yield start, start + size, type

    def _short_in(self, text: str) -> Iterator[tuple[int, int, str]]:
        for value, type in self._short.items():
            self._tick()
            start = text.find(value)
            while start >= 0:
                if _stands_alone(text, start, start + len(value)):
                    yield start, start + len(value), type
                start = text.find(value, start + 1)

    def _hidden_name(self, text: str, places: Sequence[Hit]) -> str:
        parts, done = [], 0
        for place in places:
            start, end = place.start, place.end
            while start > done and _sticks(text[start - 1]):
                start -= 1
            while end < len(text) and text[end].isdigit():
                end += 1
            if start < done:
                raise Unhidable("two values side by side in a name")
            parts += [text[done:start], self._placeholder(text[start:end], place.type)[1:-1]]
            done = end
        name = "".join([*parts, text[done:]])
        if _NAME.fullmatch(text) and len(text) <= LONGEST_NAME < len(name):
            raise Unhidable("a name would become too long")
        return name

    def _placeholder(self, value: str, type: str) -> str:
        known = self._placeholders.get(value)
        if known is None:
            self.counts[type] += 1
            known = self._placeholders[value] = (type, self.counts[type])
            self.values[f"[{type}{self._tag}_{known[1]}]"] = value
        return f"[{known[0]}{self._tag}_{known[1]}]"


def _sticks(character: str) -> bool:
    """Whether an alias behind this could not be told apart: `A` + `EMAIL_1`."""
    return character.isdigit() or ("A" <= character <= "Z")


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, behind = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (
        behind.isalnum() and text[end - 1].isalnum()
    )
