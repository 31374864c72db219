"""Placeholders in a text that comes in pieces, as models write them, and the values that they stand for. Pure.

    [EMAIL_1]   [email 1]   \\[EMAIL\\_1\\]   %5BEMAIL_1%5D   EMAIL_1

Only what may still become a placeholder is held back. A value is escaped for where it stands: in strings of JSON as
JSON, in a URL as URLs are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from weighbridge.routes.privacy.restoring.json_place import JsonPlace

#: No placeholder is longer, however it is written.
LONGEST = 160

_MARK = r"\\{0,4}"  # a backslash of Markdown, and of JSON before that
_PLACEHOLDER = re.compile(r"\[([A-Z_]+)_(\d+)\]")


class _Atom(NamedTuple):
    """One step of an expression, and how it may have begun where a text ends within it."""

    whole: str
    begun: str = ""


def _spelled(name: str, between: list[_Atom]) -> list[_Atom]:
    """A name in any case, letter by letter, with `between` for its underscores."""
    atoms: list[_Atom] = []
    for letter in name:
        atoms += between if letter == "_" else [_Atom(f"[{letter}{letter.lower()}]")]
    return atoms


def _atoms(*expressions: str) -> list[_Atom]:
    return [_Atom(each) for each in expressions]


_NUMBER = "[0-9]{1,9}"


def _bracketed(name: str) -> list[_Atom]:
    spelled = _spelled(name, _atoms(_MARK, r"[ _\-]?"))
    return [
        *_atoms(r"[\[\u3010\uff3b]", " ?"),
        *spelled,
        *_atoms(_MARK, "[ _#-]?", " ?", _NUMBER, " ?", r"[\]\u3011\uff3d]"),
    ]


def _escaped(name: str) -> list[_Atom]:
    return [*_atoms(r"\\{1,4}", r"\["), *_bracketed(name)[1:-1], *_atoms(r"\\{1,4}", r"\]")]


def _in_url(name: str) -> list[_Atom]:
    gap = [_Atom("(?:_|%5[Ff]|%20|-)", "%[52]?")]
    return [*_atoms("%", "5", "[Bb]"), *_spelled(name, gap), *gap, *_atoms(_NUMBER, "%", "5", "[Dd]")]


def _bare(name: str) -> list[_Atom]:
    letters = [
        atom for letter in name[1:] for atom in (_atoms(_MARK, "_") if letter == "_" else _atoms(letter))
    ]
    return [*_atoms(rf"(?<![A-Z0-9]){name[0]}"), *letters, *_atoms(_MARK, "_", _NUMBER)]


def _beginning(atoms: list[_Atom]) -> str:
    """Whatever `atoms` begin with, up to the end of the text."""
    rest = ""
    for atom in reversed(atoms[1:]):
        rest = f"(?:{atom.whole}{rest}|{atom.begun})?" if atom.begun else f"(?:{atom.whole}{rest})?"
    return atoms[0].whole + rest


class Placeholders:
    """All of a request: how each may be written, and what it stands for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: `[EMAIL_1]` and so on, and what each stands for."""
        self._values: dict[tuple[str, int], str] = {}
        for placeholder, value in values.items():
            match = _PLACEHOLDER.fullmatch(placeholder)
            assert match is not None, placeholder
            self._values[_plain(match[1]), int(match[2])] = value
        names = sorted(
            {match[1] for match in map(_PLACEHOLDER.fullmatch, values) if match}, key=len, reverse=True
        )
        forms = [(kind, form(name)) for name in names for kind, form in _FORMS]
        wholes = ["".join(atom.whole for atom in form) for _, form in forms]
        named = [f"(?P<{kind}{number}>{wholes[number]})" for number, (kind, _) in enumerate(forms)]
        self.whole = re.compile("|".join(named) or "(?!)")
        # An alias may go on with a digit; all other forms are over with their last character.
        starts = [_beginning(form if kind == "bare" else form[:-1]) for kind, form in forms]
        self.begun = re.compile("(?:" + "|".join(starts) + r")\Z" if starts else "(?!)")
        #: Whether any value looks different in a string of JSON.
        self.need_escapes = any(_in_json(value, 1) != value for value in values.values())

    def value(self, match: re.Match[str], depth: int) -> str:
        """What a match of `whole` stands for, as it is written `depth` strings of JSON deep; itself where unknown."""
        text = match[0]
        is_url = (match.lastgroup or "").startswith("url")
        clean = text.replace("%5F", "_").replace("%5f", "_").replace("%20", "_")[3:-3] if is_url else text
        digits = re.search(r"[0-9]+(?=[^0-9]*\Z)", clean)
        assert digits is not None
        value = self._values.get((_plain(clean[: digits.start()]), int(digits[0])))
        if value is None:
            return text
        return _in_json(_for_url(value) if is_url else value, depth)


_FORMS = (("escaped", _escaped), ("bracketed", _bracketed), ("url", _in_url), ("bare", _bare))


def _plain(name: str) -> str:
    return "".join(filter(str.isalpha, name)).upper()


def _for_url(value: str) -> str:
    """RFC 3986: all but unreserved characters as percent signs and bytes."""
    is_free = re.compile(r"[A-Za-z0-9_.~-]").fullmatch
    return "".join(
        one if is_free(one) else "".join(f"%{byte:02X}" for byte in one.encode("utf-8", "surrogatepass"))
        for one in value
    )


def _in_json(value: str, depth: int) -> str:
    for _ in range(depth):
        value = json.dumps(value, ensure_ascii=False)[1:-1]
    return value


class TextRestorer:
    """Restores one text. `in_json`: it is JSON from its beginning, as arguments of tools are."""

    def __init__(self, values: Mapping[str, str] | Placeholders, *, in_json: bool = False) -> None:
        self._all = values if isinstance(values, Placeholders) else Placeholders(values)
        self._in_json = in_json
        self._place = JsonPlace() if self._all.need_escapes else None
        self._before = ""  # the last character that went out: it tells a name from a part of another
        self._held = ""

    def push(self, piece: str) -> str:
        return self._restore(piece, is_end=False)

    def finish(self) -> str:
        return self._restore("", is_end=True)

    def _restore(self, piece: str, *, is_end: bool) -> str:
        text = self._before + self._held + piece
        position = start = len(self._before)
        out: list[str] = []
        while True:
            match = self._all.whole.search(text, position)
            held = None if is_end else self._all.begun.search(text, max(position, len(text) - LONGEST))
            if held is not None and (match is None or held.start() <= match.start()):
                stop = held.start()
                break
            if match is None:
                stop = len(text)
                break
            out += [self._pass(text[position : match.start()]), self._all.value(match, self._depth())]
            if self._place is not None:
                self._place.value()
            position = match.end()
        out.append(self._pass(text[position:stop]))
        self._held = text[stop:]
        self._before = text[max(start - 1, stop - 1, 0) : stop]
        return "".join(out)

    def _pass(self, text: str) -> str:
        if self._place is not None:
            self._place.feed(text)
        return text

    def _depth(self) -> int:
        depth = self._place.depth if self._place is not None else 0
        return max(depth, 1) if self._in_json else depth
