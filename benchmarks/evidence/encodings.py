"""Values written in every way that hides them from a plain look: what a redaction is measured by.

Each encoding makes a chat of a value, and says what of it would have left: the pieces. A value is kept if the request
stays or if none of its pieces is left whole.
"""

from __future__ import annotations

import base64
import codecs
import html
import json
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.routes.privacy.checksums import luhn

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Planted:
    """A chat with a value in it, and the strings that must not be left."""

    body: Body
    pieces: tuple[str, ...]


def card(rng: random.Random) -> str:
    body = "4" + "".join(rng.choices("0123456789", k=14))
    return next(body + digit for digit in "0123456789" if luhn(body + digit))


def values(rng: random.Random) -> dict[str, str]:
    """One value of each type that patterns know, and one phrase of the deny list."""
    word = "".join(rng.choices("abcdefghjkmnpqrstuvwxyz", k=8))
    number = card(rng)
    return {
        "EMAIL": f"{word}@{word[::-1]}.com",
        "CARD": " ".join(number[at : at + 4] for at in range(0, 16, 4)),
        "IBAN": _iban(rng),
        "PHONE": f"+49 151 {rng.randint(10000000, 99999999)}",
        "SSN": f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        "KEY": f"sk-{word}{number}",
        "DENIED": DENIED,
    }


_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: The phrase that the deny list of a measurement has.
DENIED = "Maßwerk Nord"


def _iban(rng: random.Random) -> str:
    account = "".join(rng.choices("0123456789", k=18))
    check = 98 - int(account + "131400") % 97
    whole = f"DE{check:02d}{account}"
    return " ".join(whole[at : at + 4] for at in range(0, 22, 4))


def _said(written: str) -> Planted:
    text = f"Please note {written} for me."
    return Planted({"messages": [{"role": "user", "content": text}]}, (written,))


def _each(change: Callable[[str], str]) -> Callable[[str], Planted]:
    return lambda value: _said("".join(map(change, value)))


def _special(change: Callable[[str], str]) -> Callable[[str], Planted]:
    """Only what is no letter or digit is changed, as encoders do."""
    return lambda value: _said(
        "".join(one if one.isascii() and one.isalnum() else change(one) for one in value)
    )


def _between(mark: str) -> Callable[[str], Planted]:
    return lambda value: _said(mark.join(value))


def _inside(mark: str) -> Callable[[str], Planted]:
    return lambda value: _said(value[: len(value) // 2] + mark + value[len(value) // 2 :])


def _for_spaces(mark: str) -> Callable[[str], Planted]:
    return lambda value: _said(value.replace(" ", mark))


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _wide(text: str) -> str:
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text)


def _bold(text: str) -> str:
    """Mathematical letters and digits."""
    shifted = {"a": 0x1D41A, "A": 0x1D400, "0": 0x1D7CE}
    out = ""
    for one in text:
        first = "a" if "a" <= one <= "z" else "A" if "A" <= one <= "Z" else "0" if "0" <= one <= "9" else ""
        out += chr(shifted[first] + ord(one) - ord(first)) if first else one
    return out


_LIKE = dict(zip("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ", strict=True))  # Cyrillic


def _attached(data: bytes, media: str = "text/plain") -> Planted:
    url = f"data:{media};base64,{base64.b64encode(data).decode()}"
    file = {"type": "file", "file": {"filename": "a.txt", "file_data": url}}
    content = [{"type": "text", "text": "Read this"}, file]
    return Planted({"messages": [{"role": "user", "content": content}]}, (url,))


def _cut(value: str) -> tuple[str, str]:
    middle = len(value) // 2
    return value[:middle], value[middle:]


def _parts(first: str, second: str) -> Callable[[str], Planted]:
    def plant(value: str) -> Planted:
        a, b = _cut(value)
        content = [{"type": first, first: f"Write to {a}"}, {"type": second, second: f"{b} please"}]
        return Planted({"messages": [{"role": "user", "content": content}]}, (a, b))

    return plant


def _stops(value: str) -> Planted:
    a, b = _cut(value)
    return Planted({"messages": [{"role": "user", "content": "hello"}], "stop": [a, b]}, (a, b))


def _object(value: str) -> Planted:
    a, b = _cut(value)
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps({"p": a, "q": b})},
    }
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    return Planted({"messages": messages}, (a, b))


def _two_messages(value: str) -> Planted:
    a, b = _cut(value)
    messages = [{"role": "user", "content": f"It is {a}"}, {"role": "user", "content": f"{b} and that is it"}]
    return Planted({"messages": messages}, (a, b))


def _arguments(write: Callable[[str], str]) -> Callable[[str], Planted]:
    def plant(value: str) -> Planted:
        written = write(value)
        call = {
            "id": "c1",
            "type": "function",
            "function": {"name": "f", "arguments": f'{{"to": "{written}"}}'},
        }
        messages = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        return Planted({"messages": messages}, (written,))

    return plant


def _escapes(text: str) -> str:
    return "".join(f"\\u{ord(one):04x}" for one in text)


def _field(name: str) -> Callable[[str], Planted]:
    def plant(value: str) -> Planted:
        result = {
            "role": "tool",
            "tool_call_id": "c1",
            "content": json.dumps({name: value}, ensure_ascii=False),
        }
        return Planted({"messages": [{"role": "user", "content": "hello"}, result]}, (value,))

    return plant


ENCODINGS: Mapping[str, Callable[[str], Planted]] = {
    "as it is": _said,
    "upper case": lambda value: _said(value.upper()),
    # escapes
    "percent, special characters": _special(_percent),
    "percent, every character": _each(_percent),
    "percent, twice": _special(lambda one: _percent(_percent(one))),
    "entities, decimal": _special(lambda one: f"&#{ord(one)};"),
    "entities, hexadecimal, no semicolon": _each(lambda one: f"&#x{ord(one):x};"),
    "entities, named": lambda value: _said(
        html.escape(value).replace("@", "&commat;").replace(".", "&period;")
    ),
    "entity of an entity": _special(lambda one: f"&amp;#{ord(one)};"),
    "backslash u": _each(lambda one: f"\\u{ord(one):04x}"),
    "backslash x": _each(lambda one: f"\\x{ord(one):02x}" if ord(one) < 256 else one),
    "octal": _special(lambda one: f"\\{ord(one):03o}" if ord(one) < 128 else one),
    "quoted-printable": lambda value: _said(codecs.encode(value.encode(), "quopri").decode() + "=3D"),
    "quoted-printable, soft line end": _inside("=\n"),
    # what nobody sees
    "zero-width space between": _between("\u200b"),
    "zero-width joiner between": _between("\u200d"),
    "soft hyphen between": _between("\u00ad"),
    "byte order mark inside": _inside("\ufeff"),
    "NUL inside": _inside("\x00"),
    "other controls inside": _inside("\x1f\x7f\x01"),
    "direction marks inside": _inside("\u202e\u2066"),
    "combining marks on all": _between("\u0301"),
    "variation selectors between": _between("\ufe0f"),
    "tag characters inside": _inside("\U000e0061\U000e007f"),
    # other shapes of the same characters
    "full width": _each(_wide),
    "mathematical letters": _each(_bold),
    "digits of other scripts": _each(lambda one: chr(0x0660 + int(one)) if "0" <= one <= "9" else one),
    "decomposed": lambda value: _said(unicodedata.normalize("NFD", value)),
    "look-alike letters": _each(lambda one: _LIKE.get(one, one)),
    "letters in circles": _each(lambda one: chr(0x24D0 + ord(one) - 97) if "a" <= one <= "z" else one),
    # other separators
    "tabs for spaces": _for_spaces("\t"),
    "line ends for spaces": _for_spaces("\n"),
    "dots for spaces": _for_spaces("."),
    "dashes for spaces": _for_spaces("-"),
    "slashes for spaces": _for_spaces("/"),
    "two spaces for one": _for_spaces("  "),
    "no-break spaces": _for_spaces("\u00a0"),
    "no spaces": _for_spaces(""),
    # markup
    "tags inside": _inside("<b></b>"),
    "Markdown inside": _special(lambda one: f"**{one}**" if one != " " else one),
    "Markdown escapes": _special(lambda one: f"\\{one}" if one.isascii() and one != " " else one),
    "in angle brackets": lambda value: _said(f"<{value}>"),
    "in a link": lambda value: _said(f"[mail](mailto:{value})"),
    # attachments and JSON
    "attachment, UTF-8": lambda value: _attached(f"note {value} now".encode()),
    "attachment, UTF-16LE": lambda value: _attached(f"note {value} now".encode("utf-16-le")),
    "attachment, UTF-16 with a mark": lambda value: _attached(f"note {value} now".encode("utf-16")),
    "attachment, UTF-32": lambda value: _attached(f"note {value} now".encode("utf-32")),
    "attachment, JSON with escapes": lambda value: _attached(
        json.dumps({"v": value}).encode(), "application/json"
    ),
    "JSON in a string, escapes": _arguments(_escapes),
    "JSON in JSON in a string": lambda value: _arguments(lambda text: text)(value),
    "under the name role": _field("role"),
    "under the name type": _field("type"),
    # split
    "over two text parts": _parts("text", "text"),
    "over a text and a refusal": _parts("text", "refusal"),
    "over stop sequences": _stops,
    "over fields of an object": _object,
    "over two messages": _two_messages,
    # said otherwise
    "(at) and (dot)": lambda value: _said(value.replace("@", " (at) ").replace(".", " (dot) ")),
    "spaced out": _between(" "),
    "backwards": lambda value: _said(value[::-1]),
    "rot13": lambda value: _said(codecs.encode(value, "rot13")),
    "hexadecimal": lambda value: _said(value.encode().hex()),
    "base64 in running text": lambda value: _said(base64.b64encode(value.encode()).decode()),
    "digits as words": _each(lambda one: f" {_WORDS[int(one)]} " if "0" <= one <= "9" else one),
}


def is_left(planted: Planted, redacted: Body) -> bool:
    """Whether every piece of a value is still in a body, as it was written."""
    texts = "\x00".join(_strings(redacted))
    return all(piece in texts or json.dumps(piece)[1:-1] in texts for piece in planted.pieces)


def _strings(value: Any) -> Sequence[str]:
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in (key, *_strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in _strings(one)]
    return [value] if isinstance(value, str) else []
