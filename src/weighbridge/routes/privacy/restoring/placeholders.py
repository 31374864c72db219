"""Placeholders in a text that comes in pieces, as models write them, and the values that they stand for. Pure.

    [EMAIL_1]   [email 1]   \\[EMAIL\\_1\\]   %5BEMAIL_1%5D   EMAIL_1

Only what may still become a placeholder is held back. A value is escaped for where it stands: in strings of JSON as
JSON, in a URL as URLs are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from weighbridge.routes.privacy.restoring.json_place import JsonPlace

#: No placeholder is longer, however it is written.
LONGEST = 160

_PLACEHOLDER = re.compile(r"\[([A-Z_]+)_(\d+)\]")
_OPEN, _SHUT = r"[\[\u3010\uff3b]", r"[\]\u3011\uff3d]"
#: A name as it may be spelled, and what may stand between it and its number. All of it is bounded.
_NAME, _GAP, _NUMBER = r"[A-Za-z][A-Za-z_ \\-]{0,48}?", r"[\\_ #-]{0,6}", "[0-9]{1,9}"
_URL_GAP = "(?:_|%5[Ff]|%20|-)"
#: Whatever looks like a placeholder; whether it is one, its name tells.
_WHOLE = re.compile(
    rf"\\{{1,4}}\[ ?(?P<escaped>{_NAME}){_GAP}(?P<e>{_NUMBER}) ?\\{{1,4}}\]"
    rf"|{_OPEN} ?(?P<bracketed>{_NAME}){_GAP}(?P<b>{_NUMBER}) ?{_SHUT}"
    rf"|%5[Bb](?P<url>[A-Za-z](?:[A-Za-z]|{_URL_GAP}){{0,48}}?){_URL_GAP}?(?P<u>{_NUMBER})%5[Dd]"
    rf"|(?P<bare>[A-Z](?<![A-Z0-9][A-Z])(?:[A-Z]|\\{{0,4}}_){{0,48}}?)\\{{0,4}}_(?P<n>{_NUMBER})"
)
#: What may go on to be one, up to the end of a text: more than can, for that costs nothing but a moment.
_BEGUN = re.compile(
    rf"(?:\\{{1,4}}|\\{{0,4}}{_OPEN} ?(?P<bracketed>[A-Za-z_ \\#-]{{0,60}})(?P<b>[0-9]{{0,9}})[ \\]{{0,6}}"
    r"|%(?:5(?:[Bb](?P<url>(?:[A-Za-z_-]|%5[Ff]|%20){0,60})(?P<u>[0-9]{0,9})(?:%(?:[52]?))?)?)?"
    r"|(?P<bare>[A-Z](?<![A-Z0-9][A-Z])(?:[A-Z]|\\{0,4}_){0,60})\\{0,4}(?P<n>[0-9]{0,9}))\Z"
)
_KINDS = (("escaped", "e"), ("bracketed", "b"), ("url", "u"), ("bare", "n"))


class Placeholders:
    """All of a request: what each stands for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: `[EMAIL_1]` and so on, and what each stands for."""
        self._values: dict[tuple[str, int], str] = {}
        for placeholder, value in values.items():
            match = _PLACEHOLDER.fullmatch(placeholder)
            assert match is not None, placeholder
            self._values[_letters(match[1]), int(match[2])] = value
        self._names = {name for name, _ in self._values}
        self._beginnings = {name[:size] for name in self._names for size in range(len(name) + 1)}
        #: Whether any value looks different in a string of JSON.
        self.need_escapes = any(_in_json(value, 1) != value for value in values.values())

    def find(self, text: str, position: int) -> tuple[int, int, str, bool] | None:
        """The next placeholder: where it stands, its value, and whether it stands in a URL."""
        while self._values and (match := _WHOLE.search(text, position)):
            kind, number = next(each for each in _KINDS if match[each[0]] is not None)
            value = self._values.get((_letters(match[kind]), int(match[number])))
            if value is not None:
                return match.start(), match.end(), value, kind == "url"
            position = match.start() + 1
        return None

    def begun(self, text: str, position: int) -> int | None:
        """Where what may still become a placeholder begins."""
        position = max(position, len(text) - LONGEST)
        while self._values and (match := _BEGUN.search(text, position)):
            name = next((match[kind] for kind, _ in _KINDS[1:] if match[kind] is not None), "")
            has_number = any(match[number] for _, number in _KINDS[1:])
            if _letters(name) in (self._names if has_number else self._beginnings):
                return match.start()
            position = match.start() + 1
        return None


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name.replace("%5F", "").replace("%5f", ""))).upper()


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
            found = self._all.find(text, position)
            held = None if is_end else self._all.begun(text, position)
            if held is not None and (found is None or held <= found[0]):
                stop = held
                break
            if found is None:
                stop = len(text)
                break
            begin, end, value, is_url = found
            passed = self._pass(text[position:begin])
            out += [passed, _in_json(_for_url(value) if is_url else value, self._depth())]
            if self._place is not None:
                self._place.value()
            position = end
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
