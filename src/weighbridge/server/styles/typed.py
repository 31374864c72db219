"""Arguments that a model writes as text between marks: JSON by the types of the tool's schema.

A string is passed on as it comes. Everything else is held until it is whole: its type decides what it is, and text
that is nothing of its type stays a string, as it was written.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from weighbridge.server.styles.reading import Calls, Reading, until

#: Characters of a value that are held; a longer one is passed on as a string.
MAX_HELD = 1 << 16
#: Parts of a schema that are looked at for the types of a parameter.
_MAX_PARTS = 64
_NULL = "null"
_KINDS = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
    type(None): "null",
}


class TypedArguments:
    """The arguments of one call, parameter by parameter. `trims`: line breaks at the ends of a value are none of it."""

    def __init__(self, calls: Calls, name: str, trims: bool = False) -> None:
        self._calls = calls
        self._schema = calls.tools[name]
        self._trims = trims
        self._empty = True

    def parameter(self, key: str, end: str) -> Reading[None]:
        """The value of `key`, which `end` closes."""
        self._calls.argue(("{" if self._empty else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._empty = False
        writing = _Value(self._calls, kinds_of(self._schema, key), self._trims)
        yield from until(end, writing.add)
        writing.close()

    def close(self) -> None:
        self._calls.argue("{}" if self._empty else "}")
        self._calls.end()


class _Value:
    """One value, told to the calls as JSON."""

    def __init__(self, calls: Calls, kinds: frozenset[str], trims: bool) -> None:
        self._calls = calls
        self._kinds = kinds
        self._trims = trims
        self._begun = False  # something of it was added
        self._break = ""  # a line break that may be the last
        self._held = ""
        self._flows = False
        if not kinds - {"string"}:
            self._flow()

    def add(self, text: str) -> None:
        for character in text:
            if self._trims:
                character = self._trimmed(character)
            self._write(character)

    def close(self) -> None:
        self._calls.argue('"' if self._flows else typed(self._held, self._kinds))

    def _trimmed(self, character: str) -> str:
        if not self._begun:
            self._begun = True
            if character == "\n":
                return ""
        before, self._break = self._break, ""
        if character == "\n":
            self._break = character
            return before
        return before + character

    def _write(self, text: str) -> None:
        if self._flows:
            self._calls.argue(_escaped(text))
            return
        self._held += text
        self._calls.argue("")  # it is part of the call, whatever comes
        could_be_null = _NULL in self._kinds and len(self._held) < 2 * len(_NULL) and self._begins_null()
        if len(self._held) > MAX_HELD or ("string" in self._kinds and not could_be_null):
            self._flow()

    def _begins_null(self) -> bool:
        return _NULL.startswith(self._held.strip().lower())

    def _flow(self) -> None:
        self._flows = True
        self._calls.argue('"' + _escaped(self._held))
        self._held = ""


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def kinds_of(schema: Any, key: str) -> frozenset[str]:
    """The JSON types that a parameter may have; none where the schema does not say.

    A schema is the client's: it may refer to itself, so that only its first parts are looked at.
    """
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return frozenset()
    kinds: set[str] = set()
    left = [properties.get(key)]
    for _ in range(_MAX_PARTS):
        if not left:
            break
        one = left.pop()
        if isinstance(one, Mapping):
            kinds |= _own_kinds(one)
            left += _parts(one, schema)
    return frozenset(kinds)


def _own_kinds(one: Mapping[str, Any]) -> set[str]:
    """The types that a part of a schema names, by its type or its constants."""
    written = one.get("type")
    kinds = {kind for kind in (written if isinstance(written, list) else [written]) if isinstance(kind, str)}
    constants = [one["const"]] if "const" in one else one.get("enum")
    if not kinds and isinstance(constants, list):
        kinds = {_KINDS.get(type(constant), "string") for constant in constants}
    if not kinds and "properties" in one:
        kinds = {"object"}
    if not kinds and "items" in one:
        kinds = {"array"}
    return kinds


def _parts(one: Mapping[str, Any], whole: Any) -> list[Any]:
    """What a part of a schema leaves its type to."""
    if "type" in one:
        return []
    reference = one.get("$ref")
    parts = [_referred(reference, whole)] if isinstance(reference, str) else []
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(others := one.get(word), list):
            parts += others[:_MAX_PARTS]
    return parts


def _referred(reference: str, whole: Any) -> Any:
    """What a reference such as `#/$defs/Unit` stands for."""
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        whole = whole.get(step) if isinstance(whole, Mapping) else None
    return whole


def typed(text: str, kinds: frozenset[str]) -> str:
    """A value of one of these types as JSON; a string as it was written where it is of none of them."""
    bare = text.strip()
    if "null" in kinds and bare.lower() in ("null", "none"):
        return "null"
    if "string" in kinds:
        return json.dumps(text, ensure_ascii=False)
    if "boolean" in kinds and bare.lower() in ("true", "false"):
        return bare.lower()
    if (found := _json(bare)) is not None and _fits(found, kinds):
        return bare
    if (found := _python(bare)) is not None and _fits(found, kinds):
        return _dumped(found)
    return json.dumps(text, ensure_ascii=False)


def _fits(found: Any, kinds: frozenset[str]) -> bool:
    kind = _KINDS.get(type(found), "")
    if kind == "integer" and "number" in kinds:
        return True
    return kind in kinds or (kind == "number" and "integer" in kinds and found.is_integer())


def _json(text: str) -> Any:
    try:
        found = json.loads(text, parse_constant=_refuse)
        text.encode()
    except (ValueError, RecursionError):
        return None
    return found


def _python(text: str) -> Any:
    """A literal as Python writes it, such as {'a': True}: models trained on code confuse the two."""
    if not text.startswith(("{", "[", "(")):
        return None
    try:
        found = ast.literal_eval(text)
        _dumped(found).encode()  # half of a surrogate pair cannot be sent
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return list(found) if isinstance(found, tuple) else found


def _dumped(found: Any) -> str:
    return json.dumps(found, ensure_ascii=False, allow_nan=False)


def _refuse(word: str) -> Any:
    raise ValueError(word)
