"""The last look at what is about to leave: whether any value can still be read there, by other means than it was found.

Nothing here shares code with finding and replacing. There, characters are folded one by one and traced back to their
places; here, whole texts are upper-cased, taken apart and stripped to letters and digits, the escapes undone by the
standard library, the attachments decoded by brute force. Any doubt means yes. Pure.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import Any

from weighbridge.routes.privacy.fields import VOCABULARY

#: Letters and digits that a value must have to be looked for also where other characters stand between them.
SURE = 7
#: Escapes within escapes are undone this often.
ROUNDS = 5

#: Characters that are taken apart at a time, for the interpreter cannot be taken from that.
_PIECE = 1 << 16
_BACKSLASH = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|U[0-9a-fA-F]{3}([0-9a-fA-F]{5})|x([0-9a-fA-F]{2}))")
_PERCENT = re.compile(rb"%([0-9a-fA-F]{2})")
_BASE64 = re.compile(r";base64,([A-Za-z0-9+/=_-]*+)")


def still_there(values: Collection[str], body: Any, tick: Callable[[], None] = lambda: None) -> bool:
    """Whether one of `values` stands in any text of `body`, or over several of them."""
    marks = [mark for mark in map(_Mark, values) if mark.words]
    if not marks:
        return False
    parts = [part for part in _parts(body) if part not in VOCABULARY]
    for text in _as_read("\n".join(parts)):
        tick()
        words = _words(text)
        loose, close = f" {' '.join(words)} ", "".join(words)
        for mark in marks:
            tick()
            if mark.is_in(loose, close):
                return True
    return False


class _Mark:
    """What a value is known by."""

    def __init__(self, value: str) -> None:
        self.words = _words(value)
        self._close = "".join(self.words)
        has_digit = any(map(str.isdigit, self._close))
        #: Names are made of what other words are made of too: only the same words side by side are that name.
        self._is_sure = len(self._close) >= SURE and (
            has_digit or "@" in value or len(self._close) >= 2 * SURE
        )
        loose = " ".join(self.words)
        self._loose = loose if len(self._close) >= SURE else f" {loose} "

    def is_in(self, loose: str, close: str) -> bool:
        return self._loose in loose or (self._is_sure and self._close in close)


def _parts(value: Any) -> Iterator[str]:
    """Every string there is, names and all."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            stack += [*reversed(one.values())]
            yield from one
        elif isinstance(one, list):
            stack += reversed(one)
        elif one is not None and not isinstance(one, bool):
            yield str(one)


def _as_read(text: str) -> Iterator[str]:
    """The text, and what it becomes as escapes are undone, level after level."""
    seen: set[str] = set()
    for _ in range(ROUNDS):
        if text in seen:
            return
        seen.add(text)
        yield text
        text = _BACKSLASH.sub(
            lambda match: chr(int(match[1] or match[2] or match[3], 16)), html.unescape(_unquoted(text))
        )
        text = "\n".join([text, *_attached(text)]) if len(seen) == 1 else text


def _unquoted(text: str) -> str:
    if "%" not in text:
        return text
    data = _PERCENT.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "surrogatepass"))
    return data.decode("utf-8", "replace")


def _attached(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        data = match[1].replace("-", "+").replace("_", "/")
        raw = base64.b64decode(data + "=" * (-len(data) % 4))
        yield raw.decode("utf-8", "replace")
        yield raw.replace(b"\x00", b"").decode("latin-1")


def _words(text: str) -> list[str]:
    """The letters and digits of a text, in runs: in upper case, without marks, whatever their width and script."""
    pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    return "".join([_loose(piece) for piece in pieces]).split()


def _loose(text: str) -> str:
    return unicodedata.normalize("NFKD", text.upper()).upper().translate(_KEPT)


class _Kept(dict[int, str | None]):
    """A letter or digit stays, a mark or what is invisible goes, anything else is a space."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        made: str | None = " "
        if category == "Nd":
            made = str(unicodedata.digit(character))
        elif category[0] in "LN":
            made = character
        elif category in ("Mn", "Me", "Cf", "Cs", "Co", "Cn") or (
            category == "Cc" and not character.isspace()
        ):
            made = None
        self[code] = made
        return made


_KEPT = _Kept()
