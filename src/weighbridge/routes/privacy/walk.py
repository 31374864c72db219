"""Every string of a request body, wherever it hides: messages, parts, tool arguments and results, attachments. Pure.

JSON inside a string (tool arguments, most tool results) is opened, so that an escape cannot hide a value and
a replacement cannot break the JSON. Text in base64 is left as it is, except in attachments that say they are
text. Words of the API are passed over only where the API defines them (`fields.BODY`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.routes.privacy.fields import ANY, BODY, PARTS, Field, TextKind

#: JSON within JSON within a string: this deep, then it is text.
DEPTH = 5

Replace = Callable[[str, TextKind], str]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text of the body as it is written. `opened`: it is JSON whose own texts follow; `is_key`: it names a value."""

    text: str
    kind: TextKind = TextKind.TEXT
    opened: bool = False
    is_key: bool = False
    is_number: bool = False


def leaves(value: Any, at: Field = BODY, depth: int = 0) -> Iterator[Leaf]:
    """All texts of a JSON value in order, opened; numbers as they are written."""
    if isinstance(value, str):
        if value not in at.words:
            yield from _text_leaves(value, at, depth)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in at.fields:
                yield Leaf(key, at.names, is_key=True)
            yield from leaves(one, at.below(key), depth)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one, at.each, depth)
    elif type(value) is int or isinstance(value, float):
        yield Leaf(_digits(value), at.kind, is_number=True)


def _text_leaves(text: str, at: Field, depth: int) -> Iterator[Leaf]:
    opened = _opened(text, depth)
    yield Leaf(text, at.kind, opened=opened is not None)
    if opened is not None:
        yield from leaves(opened, at.inside, depth + 1)
    attached = attachment(text)
    if attached is not None:
        yield Leaf(attached.text, at.inside.kind)


def strings(value: Any) -> Iterator[str]:
    """The texts of all leaves."""
    return (leaf.text for leaf in leaves(value))


def rewrite(value: Any, replace: Replace, at: Field = BODY, depth: int = 0) -> Any:
    """The same value with `replace` applied to the text of every leaf. Equal parts are kept as they were."""
    if isinstance(value, str):
        return value if value in at.words else _rewrite_text(value, replace, at, depth)
    if isinstance(value, Mapping):
        made = {}
        for key, one in value.items():
            name = key if key in at.fields else replace(key, at.names)
            made[name] = rewrite(one, replace, at.below(key), depth)
        if len(made) != len(value):
            raise Unhidable("two names would become one")
        return made
    if isinstance(value, list):
        return [rewrite(one, replace, at.each, depth) for one in value]
    if type(value) is int or isinstance(value, float):
        written = _digits(value)
        replaced = replace(written, at.kind)
        return value if replaced == written else replaced
    return value


def _digits(number: float) -> str:
    """A number as it is written; a whole one without a point, which is the same number."""
    is_whole = isinstance(number, float) and number.is_integer()
    return str(int(number)) if is_whole and abs(number) < 1e21 else json.dumps(number)


class Unhidable(Exception):
    """A value stands where nothing may stand for it."""


def _rewrite_text(text: str, replace: Replace, at: Field, depth: int) -> str:
    opened = _opened(text, depth)
    if opened is not None:
        changed = rewrite(opened, replace, at.inside, depth + 1)
        return text if changed == opened else json.dumps(changed, ensure_ascii=False)
    attached = attachment(text)
    if attached is not None:
        inside = replace(attached.text, at.inside.kind)
        return text if inside == attached.text else attached.with_text(inside)
    return replace(text, at.kind)


# -- JSON in strings -------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that has a name twice hides what stands under the first, so it is no JSON to us."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice")
    return made


def _opened(text: str, depth: int) -> Any:
    """What JSON a text holds; None when it holds none worth opening."""
    start = text.lstrip(" \t\r\n")[:1]
    if depth >= DEPTH or start not in ("{", "[", '"'):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) or (isinstance(value, str) and value != text) else None


#: A string of JSON, and whether it is a name.
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"(\s*+:)?')


def values_in(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    """The values of a JSON text that lie in some parts of it, with the part's number; names are left out.

    `spans`: in order and without overlap.
    """
    number = 0
    for match in _STRING.finditer(text):
        low, high = match.span(1)
        while number < len(spans) and spans[number][1] <= low - 1:
            yield from _bare(text, number, spans[number])
            number += 1
        for inside in range(number, len(spans)):
            start, end = spans[inside]
            if start >= high:
                break
            if end > low and not match[2]:
                yield inside, _as_opened(text[max(low, start) : min(high, end)])
    for rest in range(number, len(spans)):
        yield from _bare(text, rest, spans[rest])


def _bare(text: str, number: int, span: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """What stands outside of strings: a number."""
    value = text[span[0] : span[1]].strip()
    if value and '"' not in value:
        yield number, value


def _as_opened(inside: str) -> str:
    try:
        return str(json.loads(f'"{inside}"'))
    except ValueError:  # a part of an escape
        return inside


# -- attachments -----------------------------------------------------------------------------------------

_CHARSET = re.compile(r";\s*charset=\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32-le"), (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip
_PRINTED = bytes(range(32, 127)) + b"\t\r\n"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A `data:text/...;base64,` URL as its head and its text, in the encoding that it was written in."""

    head: str
    text: str
    encoding: str
    mark: bytes = b""

    def with_text(self, text: str) -> str:
        data = self.mark + text.encode(self.encoding, "xmlcharrefreplace")
        return self.head + base64.b64encode(data).decode()


def attachment(text: str) -> Attachment | None:
    """What a data URL of text holds; None where it is none, or cannot be read for certain."""
    if text[:5].lower() != "data:" or ";base64," not in text[:200]:
        return None
    head, _, data = text.partition(";base64,")
    media = head[5:]
    if not is_text_media(media):
        return None
    try:
        raw = base64.b64decode(
            "".join(data.split()), altchars=b"-_" if set(data) & {"-", "_"} else None, validate=True
        )
        return _decoded(f"{head};base64,", raw, media)
    except (binascii.Error, UnicodeError, LookupError, ValueError):
        return None


def _decoded(head: str, raw: bytes, media: str) -> Attachment:
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return Attachment(head, _clean(raw[len(mark) :].decode(encoding)), encoding, mark)
    said = _CHARSET.search(media)
    encoding = said[1].lower() if said else _guessed(raw)
    if _is_plain(raw) and "az@.".encode(encoding) != b"az@.":
        raise ValueError("a charset that hides what whoever does not believe it reads")
    return Attachment(head, _clean(raw.decode(encoding)), encoding)


def _is_plain(raw: bytes) -> bool:
    """Whether nearly all bytes are ASCII's letters, digits and marks; EBCDIC and UTF-16 are otherwise."""
    plain = len(raw) - len(raw.translate(None, _PRINTED))
    return plain * 10 >= len(raw) * 9 > 0


def _guessed(raw: bytes) -> str:
    """UTF-16 shows by its zeros, which stand at every second place; else it is UTF-8."""
    half = len(raw) // 2
    if half and len(raw) % 2 == 0:
        if raw[1::2].count(0) * 2 > half and raw[::2].count(0) * 4 < half:
            return "utf-16-le"
        if raw[::2].count(0) * 2 > half and raw[1::2].count(0) * 4 < half:
            return "utf-16-be"
    return "utf-8"


def _clean(text: str) -> str:
    """Text without zeros; raises for what has them, for it is no text in that encoding."""
    if "\x00" in text:
        raise ValueError("zeros in a text")
    return text


def is_text_media(media: str) -> bool:
    kind = media.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in ("application/json", "application/xml", "application/yaml", "")


def unreadable_parts(body: Mapping[str, Any]) -> str:
    """What no detector can look into, by name; empty when all can be read."""
    kinds = set()
    for message in body.get("messages") or ():
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in ("text", "refusal"):
                continue
            file = part.get("file") if isinstance(part, Mapping) and kind == "file" else None
            data = file.get("file_data") if isinstance(file, Mapping) else None
            if not isinstance(data, str) or attachment(data) is None:
                kinds.add(str(kind))
    return ", ".join(sorted(kinds))


@dataclass(frozen=True, slots=True)
class Siblings:
    """Texts that stand side by side: in one list, in one object, in the parts of one message (`of_parts`)."""

    texts: list[str]
    of_parts: bool = False


def siblings(value: Any, at: Field = BODY, depth: int = 0) -> Iterator[Siblings]:
    """All texts that have others beside them; messages do not stand side by side."""
    if isinstance(value, str):
        opened = None if value in at.words else _opened(value, depth)
        if opened is not None:
            yield from siblings(opened, ANY, depth + 1)
        return
    inner = [(one, at.below(key)) for key, one in value.items()] if isinstance(value, Mapping) else []
    if isinstance(value, list):
        inner = [(one, at.each) for one in value]
    texts = [text for one, below in inner for text in _direct(one, below, is_listed=isinstance(value, list))]
    if len(texts) > 1 and at is not BODY and at is not BODY.fields["messages"]:
        yield Siblings(texts, of_parts=at is PARTS)
    for one, below in inner:
        if isinstance(one, str | Mapping | list):
            yield from siblings(one, below, depth)


def _direct(value: Any, at: Field, *, is_listed: bool) -> Iterator[str]:
    """The texts that a value is, or that an object in a list has itself."""
    if isinstance(value, str) and value not in at.words:
        yield value
    elif isinstance(value, Mapping) and is_listed:
        for key, one in value.items():
            yield from _direct(one, at.below(key), is_listed=False)
