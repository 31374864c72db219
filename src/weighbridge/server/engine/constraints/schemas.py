"""Schemas as clients mean them: an object has the properties that its schema names, unless the schema opens it. Pure.

Pydantic and most other makers of schemas leave `additionalProperties` out where they mean that there are none. Taken by
the letter, such an object may have any others, and a small model goes on inventing them until its tokens are used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Keywords that hold one schema, several, or several by name.
_ONE = ("items", "additionalProperties", "contains")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
#: What says more of an object than its properties: closing one beside it could leave nothing that is valid.
_OPENERS = frozenset(
    [
        *("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"),
        *("dependentSchemas", "allOf", "if", "then", "else", "not", "$ref", "$dynamicRef"),
    ]
)
#: Schemas that are nested deeper stay as they are.
MAX_DEPTH = 64


def closed(schema: Any) -> Any:
    """Return a schema that takes nothing which the given one does not, and no properties that it does not name; of
    `oneOf` it takes what only open objects would let two of them match.

    Parts that are combined with others (`allOf`, `if`, `not` ...) stay as they are, and so do those they refer to.
    """
    return _closed(schema, _combined(schema), 0)


def _closed(value: Any, combined: frozenset[str], depth: int, path: str = "#") -> Any:
    if not isinstance(value, dict) or depth > MAX_DEPTH or path in combined:
        return value
    made = dict(value)
    for name in _ONE:
        if isinstance(made.get(name), dict):
            made[name] = _closed(made[name], combined, depth + 1, f"{path}/{name}")
    for name in _LISTS:
        # What stands beside properties is one object with them.
        if isinstance(made.get(name), list) and "properties" not in made:
            made[name] = [
                _closed(one, combined, depth + 1, f"{path}/{name}/{n}") for n, one in enumerate(made[name])
            ]
    for name in _BY_NAME:
        if isinstance(made.get(name), dict):
            made[name] = {
                key: _closed(one, combined, depth + 1, f"{path}/{name}/{key}")
                for key, one in made[name].items()
            }
    return made | {"additionalProperties": False} if _may_be_closed(value) else made


def _may_be_closed(schema: Mapping[str, Any]) -> bool:
    named, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(named, dict) or not _OPENERS.isdisjoint(schema):
        return False
    if any(isinstance(schema.get(name), list) for name in ("anyOf", "oneOf")):
        return False
    least = schema.get("minProperties", 0)
    if isinstance(least, int) and least > len(named):
        return False
    return isinstance(required, list | tuple) and all(
        isinstance(one, str) and one in named for one in required
    )


def _combined(schema: Any) -> frozenset[str]:
    """The places of definitions that something is combined with."""
    found: set[str] = set()
    left: list[tuple[Any, bool]] = [(schema, False)]
    while left:
        value, is_part = left.pop()
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str) and (is_part or len(value.keys() - _WORDS) > 1):
                found.add(ref)
            several = (
                isinstance(value.get("allOf"), list) and len(value["allOf"]) + ("properties" in value) > 1
            )
            for key, one in value.items():
                part = is_part or (key == "allOf" and several) or key in ("not", "if", "then", "else")
                beside = key in ("anyOf", "oneOf") and "properties" in value
                left.append((one, part or beside))
        elif isinstance(value, list):
            left += [(one, is_part) for one in value]
    return frozenset(found)


#: What may stand beside a reference and says nothing of the value.
_WORDS = frozenset(("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"))
