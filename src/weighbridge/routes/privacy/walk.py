"""Every string of a request body, wherever it hides: messages, parts, tool arguments and results, attachments.

JSON inside a string (tool arguments, most tool results) is opened, so that an escape cannot hide a value and
a replacement cannot break the JSON. Text in base64 is left as it is, except in attachments that say they are
text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weighbridge.routes.privacy.fields import FORWARDED

#: JSON within JSON within a string: this deep, then it is text.
DEPTH = 5

#: Values of these keys are words of the API, not of a person.
_API_WORDS = frozenset(("role", "type"))
#: Names that the API itself gives to fields: never a secret, and never to be replaced.
_API_NAMES = (
    "role content type text name id index function arguments tool_calls tool_call_id parameters properties "
    "required items enum description strict json_schema schema image_url url detail file file_data filename "
    "input_audio data format refusal additionalProperties default title anyOf oneOf allOf"
)
_API_KEYS = FORWARDED | frozenset(_API_NAMES.split())


def strings(value: Any, depth: int = 0) -> Iterator[str]:
    """All texts of a JSON value, opened; numbers as they are written."""
    if isinstance(value, str):
        yield value
        opened = _opened(value, depth)
        if opened is not None:
            yield from strings(opened, depth + 1)
        attached = _attached_text(value)
        if attached is not None:
            yield attached[1]
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in _API_KEYS:
                yield key
            if key not in _API_WORDS or not isinstance(one, str):
                yield from strings(one, depth)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one, depth)
    elif type(value) is int or isinstance(value, float):
        yield json.dumps(value)


def rewrite(value: Any, replace: Callable[[str], str], depth: int = 0) -> Any:
    """The same value with `replace` applied to all that `strings` yields. Equal parts are kept as they were."""
    if isinstance(value, str):
        return _rewrite_text(value, replace, depth)
    if isinstance(value, Mapping):
        return {
            key if key in _API_KEYS else replace(key): one
            if key in _API_WORDS and isinstance(one, str)
            else rewrite(one, replace, depth)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [rewrite(one, replace, depth) for one in value]
    if type(value) is int or isinstance(value, float):
        written = json.dumps(value)
        replaced = replace(written)
        return value if replaced == written else replaced
    return value


def _rewrite_text(text: str, replace: Callable[[str], str], depth: int) -> str:
    opened = _opened(text, depth)
    if opened is not None:
        changed = rewrite(opened, replace, depth + 1)
        if changed != opened:
            text = json.dumps(changed, ensure_ascii=False)
    attached = _attached_text(text)
    if attached is not None:
        head, inside = attached
        changed_inside = replace(inside)
        if changed_inside != inside:
            return head + base64.b64encode(changed_inside.encode()).decode()
        return text
    return replace(text)


def _opened(text: str, depth: int) -> Any:
    """What JSON a text holds; None when it holds none worth opening."""
    if depth >= DEPTH or not text.lstrip()[:1] or text.lstrip()[0] not in '{["':
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) or (isinstance(value, str) and value != text) else None


def _attached_text(text: str) -> tuple[str, str] | None:
    """A `data:text/...;base64,` URL as its head and its text."""
    if not text.startswith("data:") or ";base64," not in text[:200]:
        return None
    head, _, data = text.partition(";base64,")
    if not is_text_media(head.removeprefix("data:")):
        return None
    try:
        return f"{head};base64,", base64.b64decode(data, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def is_json(text: str) -> bool:
    """Whether a text is JSON that `strings` opens."""
    return _opened(text, 0) is not None


def is_text_media(media: str) -> bool:
    kind = media.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in ("application/json", "application/xml", "application/yaml")


def unreadable_parts(body: Mapping[str, Any]) -> str:
    """What no detector can look into, by name; empty when all can be read."""
    kinds = set()
    for message in body.get("messages") or ():
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in ("text", "refusal"):
                continue
            data = (part.get("file") or {}).get("file_data") if kind == "file" else None
            if not isinstance(data, str) or _attached_text(data) is None:
                kinds.add(str(kind))
    return ", ".join(sorted(kinds))


def joined_parts(body: Mapping[str, Any]) -> Iterator[str]:
    """The text parts of each message run together: what a value split over parts would look like."""
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list):
            texts = [p["text"] for p in content if isinstance(p, Mapping) and isinstance(p.get("text"), str)]
            if len(texts) > 1:
                yield "".join(texts)
